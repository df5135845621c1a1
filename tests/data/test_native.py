"""The C modules give Pillow's pixels to the bit, survive any bytes, and are not missed where they are not there."""

import io
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import native
from data.crop import Box
from data.decode import Picture, native_available
from data.native import exact_resizer, native_parts, region_decoder
from data.resize import FILTER, resize_torch, resize_window
from data.transform import AugmentSettings, EvalTransform, train_transform

# Not built is a reason to skip; built and refused by its own check is a failure.
needs_jpeg = pytest.mark.skipif(find_spec("data._jpeg") is None, reason="data._jpeg is not built")
needs_resize = pytest.mark.skipif(find_spec("data._resize") is None, reason="data._resize is not built")


def noisy(width: int, height: int, seed: int) -> np.ndarray:
    """Slopes under noise: colours differ between neighbours, and so do blocks."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=2) * 80 + 128
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    gray = options.pop("gray", False)
    image = Image.fromarray(pixels)
    (image.convert("L") if gray else image).save(file, "JPEG", **options)
    return file.getvalue()


def region(content: bytes, box: tuple[int, int, int, int], denominator: int = 1) -> np.ndarray:
    decode = region_decoder()
    assert decode is not None
    found = np.full((box[3], box[2], 3), 77, np.uint8)
    decode(content, Box(*box), denominator, found)
    return found


def pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return Box(left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))


@needs_jpeg
def test_a_built_decoder_is_used() -> None:
    assert native_available()
    assert native_parts()["JPEG regions"]


@needs_resize
def test_a_built_resizer_is_used() -> None:
    assert native_parts()["resize"]


# ---- regions of a JPEG


ENCODINGS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "gray": {"gray": True},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": 0},
    "restart markers": {"restart_marker_blocks": 3},
    "coarse": {"quality": 8},
}


@needs_jpeg
@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_region_is_cut_from_the_whole(encoding: str, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    content = jpeg(noisy(width, height, seed=width), **ENCODINGS[encoding])
    left, top, box_width, box_height = box = data.draw(boxes(width, height))
    expected = pillow(content)[top : top + box_height, left : left + box_width]
    assert np.array_equal(region(content, box), expected)


@needs_jpeg
@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings(subsampling: str) -> None:
    content = simplejpeg.encode_jpeg(noisy(67, 53, seed=1), colorsubsampling=subsampling)
    whole = pillow(content)
    assert np.array_equal(simplejpeg.decode_jpeg(content), whole)
    for left, top, width, height in ((0, 0, 67, 53), (5, 7, 40, 30), (33, 1, 34, 52), (31, 29, 2, 3)):
        found = region(content, (left, top, width, height))
        assert np.array_equal(found, whole[top : top + height, left : left + width])


@needs_jpeg
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("denominator", [2, 4, 8])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_reduced_region_is_simplejpegs(encoding: str, denominator: int, data: st.DataObject) -> None:
    """So a recipe with decode: scaled trains on the same pixels without the module."""
    width, height = data.draw(st.integers(9, 90)), data.draw(st.integers(9, 90))
    content = jpeg(noisy(width, height, seed=height), **ENCODINGS[encoding])
    size = -(-height // denominator), -(-width // denominator)
    whole = simplejpeg.decode_jpeg(content, min_factor=denominator, min_height=size[0], min_width=size[1])
    assert whole.shape[:2] == size
    left, top, box_width, box_height = box = data.draw(boxes(size[1], size[0]))
    expected = whole[top : top + box_height, left : left + box_width]
    assert np.array_equal(region(content, box, denominator), expected)


@needs_jpeg
@pytest.mark.parametrize(
    ("box", "denominator"),
    [
        *[((0, 0, 41, 30), 1), ((0, 0, 40, 31), 1), ((40, 0, 1, 1), 1), ((0, 30, 1, 1), 1)],
        *[((0, 0, 21, 15), 2), ((2**31, 0, 1, 1), 1), ((0, 0, 0, 1), 1), ((0, 0, 70000, 1), 1)],
        *[((0, 0, 4, 4), 3), ((0, 0, 4, 4), 0)],
    ],
)
def test_what_lies_outside_is_refused(box: tuple[int, int, int, int], denominator: int) -> None:
    content = jpeg(noisy(40, 30, seed=0))
    with pytest.raises(ValueError, match=r"outside the image|out of range"):
        region(content, box, denominator)


@needs_jpeg
def test_the_buffer_must_fit_and_be_writable() -> None:
    decode = region_decoder()
    assert decode is not None
    content = jpeg(noisy(40, 30, seed=0))
    with pytest.raises(ValueError, match="length"):
        decode(content, Box(0, 0, 8, 8), 1, np.empty((8, 7, 3), np.uint8))
    fixed = np.empty((8, 8, 3), np.uint8)
    fixed.flags.writeable = False
    with pytest.raises((BufferError, TypeError)):
        decode(content, Box(0, 0, 8, 8), 1, fixed)


@needs_jpeg
@pytest.mark.parametrize("kind", ["CMYK", "PNG", "empty", "text", "huge"])
def test_other_images_are_refused(kind: str) -> None:
    picture = Image.fromarray(noisy(16, 16, seed=0))
    file = io.BytesIO()
    if kind == "CMYK":
        picture.convert("CMYK").save(file, "JPEG")
    elif kind == "PNG":
        picture.save(file, "PNG")
    content = {"empty": b"", "text": b"<html></html>"}.get(kind, file.getvalue())
    if kind == "huge":  # the header says 65500x65500; nothing of that size may be made
        content = bytearray(jpeg(noisy(16, 16, seed=0)))
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = b"\xff\xdc\xff\xdc"
    with pytest.raises(ValueError):  # noqa: PT011  libjpeg's own words
        region(bytes(content), (0, 0, 1, 16))


@needs_jpeg
@pytest.mark.parametrize("encoding", ["4:2:0", "progressive", "restart markers"])
def test_any_bytes_are_survived(encoding: str) -> None:
    """Flips and cuts: libjpeg's pixels or its complaint, never a crash, and no pixels that Pillow would not give."""
    content, random = jpeg(noisy(60, 50, seed=2), **ENCODINGS[encoding]), np.random.default_rng(3)
    refused = 0
    for number in range(600):
        length = len(content) if number % 3 else int(random.integers(1, len(content)))
        damaged = bytearray(content[:length])
        for _ in range(int(random.integers(0, 4))):
            damaged[int(random.integers(length))] ^= 1 << int(random.integers(8))
        try:
            found = region(bytes(damaged), (0, 0, 60, 50))
        except ValueError:
            refused += 1
        else:
            assert np.array_equal(found, pillow(bytes(damaged))[:50, :60])  # it may have become larger
    assert 200 < refused < 600


@needs_jpeg
def test_threads_decode_side_by_side() -> None:
    contents = [jpeg(noisy(90, 70, seed=seed)) for seed in range(8)]
    found: dict[int, list[np.ndarray]] = {seed: [] for seed in range(8)}

    def work(seed: int) -> None:
        found[seed] = [region(contents[seed], (9, 5, 60, 50)) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, copies in found.items():
        expected = pillow(contents[seed])[5:55, 9:69]
        assert len(copies) == 30
        assert all(np.array_equal(copy, expected) for copy in copies)


# ---- resize


@needs_resize
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_window_is_pillows(interpolation: str, data: st.DataObject) -> None:
    """Any sizes, hard edges and noise. Also where Pillow resizes vertically first."""
    width, height, new_width, new_height = (data.draw(st.integers(1, 120)) for _ in range(4))
    pixels = noisy(width, height, seed=width + height)
    if data.draw(st.booleans()):
        pixels = np.where(pixels > 128, 255, 0).astype(np.uint8)
    window = data.draw(boxes(new_width, new_height))
    picture = PixelPicture(pixels)
    image = Image.fromarray(pixels).resize((new_width, new_height), FILTER[interpolation])
    expected = np.asarray(image)[
        window.top : window.top + window.height, window.left : window.left + window.width
    ]
    found = np.empty((3, window.height, window.width), np.uint8)
    for is_mirrored in (False, True):
        resize_window(
            picture,
            Box(0, 0, width, height),
            (new_width, new_height),
            window=window,
            interpolation=interpolation,
            into=found,
            is_mirrored=is_mirrored,
        )
        assert np.array_equal(found.transpose(1, 2, 0), expected[:, ::-1] if is_mirrored else expected)


@needs_resize
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_torchs_resize_is_torchs(interpolation: str, data: st.DataObject) -> None:
    width, height, new_width, new_height = (data.draw(st.integers(1, 120)) for _ in range(4))
    pixels = noisy(width, height, seed=width + height)
    if data.draw(st.booleans()):
        pixels = np.where(pixels > 128, 255, 0).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    size = new_height, new_width
    expected = torch.nn.functional.interpolate(image, size=size, mode=interpolation, antialias=True)[
        0
    ].numpy()
    found = np.empty((3, *size), np.uint8)
    for is_mirrored in (False, True):
        resize_torch(pixels, interpolation, into=found, is_mirrored=is_mirrored)
        assert np.array_equal(found, expected[:, :, ::-1] if is_mirrored else expected)


@needs_resize
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_vectors_and_plain_loops_agree(data: st.DataObject) -> None:
    from data._resize import resize

    width, height, new_width, new_height = (data.draw(st.integers(1, 90)) for _ in range(4))
    pixels = noisy(width, height, seed=width)
    found = np.empty((2, 3, new_height, new_width), np.uint8)
    whole, window = Box(0, 0, width, height), Box(0, 0, new_width, new_height)
    sizes, kind = (
        ((width, height), (new_width, new_height)),
        (data.draw(st.booleans()), data.draw(st.booleans())),
    )
    for is_plain in (False, True):
        resize(pixels, whole, *sizes, window, 2, found[int(is_plain)], *kind, is_plain)
    assert np.array_equal(found[0], found[1])


class PixelPicture(Picture):
    """Of pixels that are there already."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels, self._content, self._is_plain_jpeg = pixels, b"", False
        self.height, self.width = pixels.shape[:2]


@needs_resize
def test_a_source_that_is_too_small_is_refused() -> None:
    resizer = exact_resizer()
    assert resizer is not None
    out = np.empty((3, 10, 10), np.uint8)
    window, sizes = Box(5, 5, 10, 10), ((50, 40), (20, 20))
    x, y = resizer.span(50, 20, 5, 10, 2), resizer.span(40, 20, 5, 10, 2)
    box = Box(x[0], y[0], x[1] - x[0], y[1] - y[0])
    source = np.zeros((box.height, box.width, 3), np.uint8)
    resizer.resize(source, box, *sizes, window, 2, out)
    for wrong in (box._replace(left=box.left + 1), box._replace(top=box.top - 1), box._replace(left=-1)):
        with pytest.raises(ValueError, match=r"does not hold|out of range"):
            resizer.resize(source, wrong, *sizes, window, 2, out)
    with pytest.raises(ValueError, match="length"):
        resizer.resize(source[:-1], box, *sizes, window, 2, out)
    with pytest.raises(ValueError, match="length"):
        resizer.resize(source, box, *sizes, window, 2, out[:, :9].copy())
    for wrong_window in (Box(11, 5, 10, 10), Box(5, 5, 10, 16), Box(-1, 5, 10, 10)):
        with pytest.raises(ValueError, match="out of range"):
            resizer.resize(source, box, *sizes, wrong_window, 2, out)


# ---- with and without


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a compiler."""
    for cache in (region_decoder, exact_resizer):
        cache.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "data._jpeg", None)
        patch.setitem(sys.modules, "data._resize", None)
        yield
    for cache in (region_decoder, exact_resizer):
        cache.cache_clear()


def transformed() -> list[np.ndarray]:
    """Crops and evaluations of several JPEGs under every setting that decides pixels."""
    trainings = [
        AugmentSettings(),
        AugmentSettings(resampler="pillow"),
        AugmentSettings(decode="scaled", interpolation="bilinear"),
        AugmentSettings(randaug="rand-m9-mstd0.5-inc1"),
    ]
    evaluations = [EvalTransform(), EvalTransform(mode="squash", interpolation="bilinear")]
    found = []
    for width, height in ((200, 150), (90, 230), (33, 40)):
        content = jpeg(noisy(width, height, seed=width))
        for settings_ in trainings:
            for seed in range(6):
                found.append(train_transform(Picture(content), settings_, sample_seed=seed, image_size=32))
        found += [transform.apply(Picture(content), image_size=32) for transform in evaluations]
    return found


WITH_MODULES = transformed()


@pytest.mark.usefixtures("no_modules")
def test_no_pixel_depends_on_the_modules() -> None:
    assert native_parts() == {"JPEG regions": False, "resize": False}
    without = transformed()
    assert all(np.array_equal(a, b) for a, b in zip(WITH_MODULES, without, strict=True))


@needs_jpeg
def test_a_decoder_that_disagrees_is_not_used() -> None:
    honest = region_decoder()
    assert honest is not None

    def other(content: bytes, box: Box, denominator: int, out: np.ndarray) -> None:
        honest(content, box, denominator, out)
        out[3, 4, 1] ^= 1

    assert native._decodes_as_pillow(honest)
    assert not native._decodes_as_pillow(other)
