"""The two optional C modules: built where a compiler and libjpeg-turbo are found, used where they agree with Pillow
and torch.

They save time and never change a pixel, so no result depends on whether they are there. Tests hold that for many
images; a small one is compared in each process before a module is used, since the system's libjpeg may be any.
ROBUST_BITS_NATIVE=0 in the environment leaves them aside, to measure what they save.
"""

import io
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.crop import Box

SWITCH: Final = "ROBUST_BITS_NATIVE"
Decode = Callable[[bytes, Box, int, NDArray[np.uint8]], None]
_BOX: Final = Box(17, 9, 22, 25)  # of a picture of 48x40: on no border of JPEG's blocks


class Resizer(NamedTuple):
    """Functions of `_resize.pyi`."""

    span: Callable[[int, int, int, int, int], tuple[int, int]]
    resize: Callable[
        [NDArray[np.uint8], Box, tuple[int, int], tuple[int, int], Box, int, NDArray[np.uint8], bool, bool],
        None,
    ]


def native_parts() -> dict[str, bool]:
    """What is built and used: the decoder of JPEG regions, and the resize."""
    return {"JPEG regions": region_decoder() is not None, "resize": exact_resizer() is not None}


@lru_cache(maxsize=1)
def region_decoder() -> Decode | None:
    """`_jpeg.decode`, or None."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from data._jpeg import decode
    except ImportError:  # not built, or without its library
        return None
    return decode if _decodes_as_pillow(decode) else None


@lru_cache(maxsize=1)
def exact_resizer() -> Resizer | None:
    """The functions of `_resize`, or None."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from data._resize import resize, span
    except ImportError:
        return None
    resizer = Resizer(span, resize)
    return resizer if _resizes_as_others(resizer) else None


def _decodes_as_pillow(decode: Decode) -> bool:
    left, top, width, height = _BOX
    found = np.empty((height, width, 3), np.uint8)
    for subsampling in (0, 1, 2):  # 4:4:4, 4:2:2, 4:2:0
        file = io.BytesIO()
        _sample().save(file, "JPEG", quality=90, subsampling=subsampling)
        try:
            decode(file.getvalue(), _BOX, 1, found)
        except ValueError:
            return False
        expected = np.asarray(Image.open(file).convert("RGB"))[top : top + height, left : left + width]
        if not np.array_equal(found, expected):
            return False
    return True


def _resizes_as_others(resizer: Resizer) -> bool:
    sample, size = _sample(), (31, 27)
    pixels, whole, window = np.asarray(sample), Box(0, 0, *sample.size), Box(0, 0, *size)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    found = np.empty((2, 3, size[1], size[0]), np.uint8)
    for support, mode in ((1, "bilinear"), (2, "bicubic")):
        for is_torch in (False, True):
            out = found[int(is_torch)]
            try:
                resizer.resize(pixels, whole, sample.size, size, window, support, out, is_torch, is_torch)
            except TypeError:  # built from another version of its source
                return False
        by_pillow = np.asarray(sample.resize(size, Image.Resampling[mode.upper()]))
        by_torch = torch.nn.functional.interpolate(image, size=size[::-1], mode=mode, antialias=True)[0]
        if not np.array_equal(found[0].transpose(1, 2, 0), by_pillow):
            return False
        if not np.array_equal(found[1, :, :, ::-1], by_torch.numpy()):
            return False
    return True


def _sample() -> Image.Image:
    """48x40: slopes, an edge and a fine pattern."""
    y, x = np.mgrid[:40, :48]
    planes = (5 * x % 256, (x > y) * 200 + 20, (x * x + 3 * y * y) % 256)
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))
