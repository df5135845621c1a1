"""Odd images come out as Pillow and timm would give them, or with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.decode import decode, inspect, sniff

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


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
def test_formats_equal_pillow(mode: str, kind: str) -> None:
    image = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else mode)
    file = io.BytesIO()
    (image.convert("I").convert("I;16") if mode == "I;16" else image).save(file, kind)
    found = decode(file.getvalue())
    assert found.mode == "RGB"
    assert sniff(file.getvalue()) == kind
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(file).convert("RGB")))


def test_exif_orientation_is_ignored_and_recorded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode("RGB", "JPEG", exif=exif)
    assert decode(content).size == (10, 12)
    assert inspect(content).is_rotated
    assert not inspect(encode("RGB", "JPEG")).is_rotated


def test_first_frame_of_an_animation() -> None:
    file = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(file, "GIF", save_all=True, append_images=[second])
    assert decode(file.getvalue()).getpixel((0, 0)) == (255, 0, 0)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_images_are_refused(kind: str) -> None:
    content = encode("RGB", kind)
    for length in (len(content) // 2, 20):
        with pytest.raises(ValueError, match=f"the {kind} image cannot be decoded"):
            decode(content[:length])
