"""Which part of a picture is used: boxes in whole pixels, from given numbers, without looking at a pixel."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

CROP_TRIES: Final = 10
NUM_CROP_NUMBERS: Final = 2 * CROP_TRIES + 2


class Box(NamedTuple):
    """A rectangle inside a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def random_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    numbers: Sequence[float],
) -> Box:
    """Inception's crop of a picture of width x height, as torchvision and timm make it, from NUM_CROP_NUMBERS
    uniforms: two for each try, then two for the place.
    """
    log_low, log_high = (math.log(value) for value in ratio)
    for attempt in range(CROP_TRIES):
        target = width * height * _between(*scale, numbers[2 * attempt])
        aspect = math.exp(_between(log_low, log_high, numbers[2 * attempt + 1]))
        new_width, new_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < new_width <= width and 0 < new_height <= height:
            top = int(numbers[2 * CROP_TRIES] * (height - new_height + 1))
            left = int(numbers[2 * CROP_TRIES + 1] * (width - new_width + 1))
            return Box(left, top, new_width, new_height)
    return _fallback_box(width, height, ratio)


def center_box(width: int, height: int, size: int) -> Box:
    """The central square. Offsets round half to even, as torchvision's CenterCrop does: it matters by one pixel."""
    return Box(round((width - size) / 2), round((height - size) / 2), size, size)


def shorter_to(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `size`, the longer one rounded down, as torchvision's Resize(size)."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _fallback_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """The largest central box inside the ratio range. A side is at least 1, even of a 500x1 picture."""
    new_width, new_height = width, height
    if width / height < ratio[0]:
        new_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        new_width = max(1, round(height * ratio[1]))
    return Box((width - new_width) // 2, (height - new_height) // 2, new_width, new_height)


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * number
