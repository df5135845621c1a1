"""Pixels to another size, planar: Pillow's arithmetic to the bit, or torch's, which is quick everywhere.

Pillow's is what evaluation uses, as timm does. torch's antialiased uint8 resize has the same filters with
weights of 16 bits: at most a level from Pillow's, 0.003 on average, and twice as fast without the C modules, which
know both.
"""

from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.crop import Box
from data.decode import Picture
from data.native import exact_resizer

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

FILTER: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SUPPORT: Final = {"bilinear": 1, "bicubic": 2}  # of the filters that torch and the C module have


def check_interpolation(name: str) -> None:
    if name not in FILTER:
        raise ValueError(f"interpolation {name!r} is unknown; use one of {', '.join(FILTER)}")


def resize_torch(
    pixels: NDArray[np.uint8],
    interpolation: Interpolation,
    *,
    into: NDArray[np.uint8],
    is_mirrored: bool = False,
) -> None:
    """uint8 [h,w,3] into [3,height,width], left and right exchanged if asked for; bilinear or bicubic."""
    size, resizer = into.shape[1:], exact_resizer()
    if resizer is None:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(image, size=size, mode=interpolation, antialias=True)
        found = resized[0].numpy()
        into[:] = found[:, :, ::-1] if is_mirrored else found
        return
    old_size, new_size = (pixels.shape[1], pixels.shape[0]), (size[1], size[0])
    resizer.resize(
        np.ascontiguousarray(pixels),
        Box(0, 0, *old_size),
        old_size,
        new_size,
        Box(0, 0, *new_size),
        _SUPPORT[interpolation],
        into,
        True,
        is_mirrored,
    )


def has_torch_filter(interpolation: Interpolation) -> bool:
    return interpolation in _SUPPORT


def resize_window(
    picture: Picture,
    box: Box,
    new_size: tuple[int, int],
    *,
    window: Box,
    interpolation: Interpolation,
    into: NDArray[np.uint8],
    is_mirrored: bool = False,
) -> None:
    """What PIL's crop(box).resize(new_size).crop(window) gives, into uint8 [3,window.height,window.width], left and
    right exchanged if asked for.

    `new_size` is (width, height). Only the pixels that the window needs are decoded, where that is possible.
    """
    resizer = exact_resizer()
    if resizer is None or interpolation not in _SUPPORT or _is_vertical_first(box, new_size):
        found = _by_pillow(picture, box, new_size, window, interpolation)
        into[:] = found[:, :, ::-1] if is_mirrored else found
        return
    support = _SUPPORT[interpolation]
    x0, x1 = resizer.span(box.width, new_size[0], window.left, window.width, support)
    y0, y1 = resizer.span(box.height, new_size[1], window.top, window.height, support)
    source = picture.region(Box(box.left + x0, box.top + y0, x1 - x0, y1 - y0))
    resizer.resize(
        np.ascontiguousarray(source),
        Box(x0, y0, x1 - x0, y1 - y0),
        (box.width, box.height),
        new_size,
        window,
        support,
        into,
        False,
        is_mirrored,
    )


def _is_vertical_first(box: Box, new_size: tuple[int, int]) -> bool:
    """Pillow rounds to 8 bits between its two passes. Until 12 the horizontal one came first; since 13 the vertical
    one does where it shrinks the picture by many more pixels. There the installed Pillow decides.
    """
    lost_rows, lost_columns = box.height - new_size[1], box.width - new_size[0]
    return lost_rows > 0 and lost_rows > 2 * lost_columns


def _by_pillow(
    picture: Picture, box: Box, new_size: tuple[int, int], window: Box, interpolation: Interpolation
) -> NDArray[np.uint8]:
    image = Image.fromarray(picture.region(box))
    if image.size != new_size:
        image = image.resize(new_size, FILTER[interpolation])
    left, top, width, height = window
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.transpose(2, 0, 1)
