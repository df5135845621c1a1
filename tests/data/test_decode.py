"""Odd images come out as Pillow and timm would give them, or with a reason."""

import io
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageOps

from data import decode as ladder
from data.crop import Box
from data.decode import Picture, inspect, sniff

PATHS = ["with the C module", "without it"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way a JPEG can go; without the module the first one is skipped, not passed."""
    if request.param == "without it":
        monkeypatch.setattr(ladder, "region_decoder", lambda: None)
    elif find_spec("data._jpeg") is None:
        pytest.skip("data._jpeg is not built")
    return str(request.param)


def decode(content: bytes) -> np.ndarray:
    """All pixels, asked for as a region: the way of a loader."""
    picture = Picture(content)
    found = picture.region(Box(0, 0, picture.width, picture.height))
    assert np.array_equal(found, Picture(content).pixels())
    return found


def pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def encode(mode: str, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "JPEG") for mode in ("RGB", "L", "CMYK")],
        *[(mode, "PNG") for mode in ("RGB", "RGBA", "P", "1", "I;16", "LA")],
        *[("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"), ("RGB", "BMP")],
    ],
)
@pytest.mark.usefixtures("path")
def test_formats_equal_pillow(mode: str, kind: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    file = io.BytesIO()
    (image.convert("I").convert("I;16") if mode == "I;16" else image).save(file, kind)
    found = decode(file.getvalue())
    assert sniff(file.getvalue()) == kind
    assert np.array_equal(found, pillow(file.getvalue()))


def test_exif_orientation_is_ignored_and_recorded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode("RGB", "JPEG", exif=exif)
    assert decode(content).shape == (12, 10, 3)
    assert inspect(content).is_rotated
    assert not inspect(encode("RGB", "JPEG")).is_rotated


def test_first_frame_of_an_animation() -> None:
    file = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(file, "GIF", save_all=True, append_images=[second])
    assert decode(file.getvalue())[0, 0].tolist() == [255, 0, 0]


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(8001, 8000), (10000, 10000), (60000, 60000)])
def test_bombs_are_refused_from_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"cannot be decoded \(.*limit"):
        decode(png_header(*size))


def test_the_limit_itself_is_allowed() -> None:
    """64 million pixels pass, and then there is no data to decode."""
    with pytest.raises(ValueError, match=r"^the PNG image cannot be decoded \((?!.*limit)"):
        decode(png_header(8000, 8000))


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="are not a JPEG, PNG, WebP, GIF or BMP image"):
        decode(content)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_images_are_refused(kind: str) -> None:
    content = encode("RGB", kind)
    for length in (len(content) // 2, 20):
        with pytest.raises(ValueError, match=f"the {kind} image cannot be decoded"):
            decode(content[:length])


@pytest.mark.usefixtures("path")
def test_a_truncated_jpeg_is_refused_even_where_its_first_rows_would_do() -> None:
    content = photo_jpeg(120, 90)
    for length in range(len(content) - 1, 700, -101):
        cut = content[:length]
        with pytest.raises(ValueError, match=r"the JPEG image cannot be decoded \(image file is truncated"):
            Picture(cut).region(Box(0, 0, 8, 2))


def photo_jpeg(width: int, height: int, **options: object) -> bytes:
    y, x = np.mgrid[:height, :width]
    planes = [100 + 80 * np.sin(x / 9 + y / 20), 2.0 * y % 256, (x + y) % 200 + 20.0]
    file = io.BytesIO()
    image = Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))
    if options.pop("gray", False):
        image = image.convert("L")
    image.save(file, "JPEG", **{"quality": 85, **options})
    return file.getvalue()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_on_demand(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode("RGB", kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    found = Picture(content, apply_exif=True)
    assert (found.height, found.width) == expected.shape[:2]
    assert np.array_equal(found.pixels(), expected)
    assert np.array_equal(found.region(Box(1, 2, 5, 6)), expected[2:8, 1:6])


def test_broken_exif_asks_for_nothing() -> None:
    content = encode("RGB", "JPEG", exif=b"Exif\0\0not a TIFF header at all")
    assert not inspect(content).is_rotated
    assert np.array_equal(Picture(content, apply_exif=True).pixels(), pillow(content))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"gray": True}])
@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_a_reduced_region_is_part_of_pillows_draft(options: dict[str, object], denominator: int) -> None:
    content = photo_jpeg(203, 150, **options)
    draft = Image.open(io.BytesIO(content))
    draft.draft(draft.mode, (203 // denominator, 150 // denominator))
    expected = np.asarray(draft.convert("RGB"))
    assert expected.shape[:2] == (-(-150 // denominator), -(-203 // denominator))
    for box in (Box(0, 0, 203, 150), Box(66, 41, 97, 82), Box(187, 134, 16, 16)):
        left, top, right, bottom = (
            (edge + denominator // 2) // denominator
            for edge in (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        found = Picture(content).reduced_region(box, denominator)
        assert np.array_equal(found, expected[top:bottom, left:right])


def test_other_formats_are_not_reduced() -> None:
    content = encode("RGB", "PNG")
    assert np.array_equal(Picture(content).reduced_region(Box(2, 2, 8, 8), 4), PIXELS[2:10, 2:10])


@pytest.mark.usefixtures("path")
def test_what_only_pillow_takes_is_taken_with_its_pixels() -> None:
    """Bytes that libjpeg warns of (here a lost byte in the data of a JPEG) are images to Pillow and to timm."""
    content = photo_jpeg(64, 48)
    start = content.index(b"\xff\xda") + 40
    damaged = content[:start] + content[start + 1 :]
    assert np.array_equal(decode(damaged), pillow(damaged))
    reduced = Picture(damaged).reduced_region(Box(0, 0, 64, 48), 2)
    assert reduced.shape == (24, 32, 3)


@pytest.mark.usefixtures("path")
def test_bytes_behind_the_image_do_no_harm() -> None:
    content = photo_jpeg(30, 20)
    assert np.array_equal(decode(content + b"\0\0trailer"), pillow(content))


@pytest.mark.usefixtures("path")
def test_damage_gives_pillows_verdict() -> None:
    """Flipped bits, all over the file: refused where Pillow refuses, else Pillow's pixels."""
    content, random = photo_jpeg(48, 40), np.random.default_rng(0)
    verdicts = set()
    for _ in range(400):
        damaged = bytearray(content)
        place = int(random.integers(2, len(content) - 2))
        damaged[place] ^= 1 << int(random.integers(8))
        try:
            expected: np.ndarray | None = decode_with_pillow(bytes(damaged))
        except ValueError:
            expected = None
        verdicts.add(expected is None)
        if expected is None:
            with pytest.raises(ValueError, match=r"cannot be decoded|are not a JPEG"):
                decode(bytes(damaged))
        else:
            assert np.array_equal(decode(bytes(damaged)), expected), place
    assert verdicts == {True, False}


def decode_with_pillow(content: bytes) -> np.ndarray:
    return ladder._pillow_pixels(content, apply_exif=False)


def test_the_pixel_limit_holds_for_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "MAX_PIXELS", 999)
    with pytest.raises(
        ValueError, match=r"^the JPEG image cannot be decoded \(40x25 pixels, the limit is 999\)$"
    ):
        Picture(photo_jpeg(40, 25))
    assert Picture(photo_jpeg(37, 27)).width == 37
