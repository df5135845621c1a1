"""Filters and resamplings along rows and columns, as sums of shifted or picked rows.

Neither convolutions nor matrix products: those run in TF32 on GPUs and in bfloat16 on TPUs and would change pixels,
and with a kernel of one dimension they are not faster on a CPU either.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# N images or channels, H rows, W columns.
# aaa|abc|ccc, cb|abc|ba (OpenCV's default) or cba|abc|cba (scipy's).
Border = Literal["nearest", "mirror", "reflect"]


class Taps(NamedTuple):
    """Each output row is a weighted sum of input rows, one tuple entry a term: places [rows], weight [rows,1]."""

    places: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]


@lru_cache(maxsize=64)
def gaussian_half(sigma: float, *, truncate: float = 4.0) -> tuple[float, ...]:
    """The middle weight and those to one side, as scipy's gaussian_filter1d normalises them."""
    reach = int(truncate * sigma + 0.5)
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight /= weight.sum()
    return tuple(float(value) for value in weight[reach:])


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur of (...,H,W), edges repeated: skimage.filters.gaussian."""
    return symmetric(image, gaussian_half(sigma), border="nearest")


def symmetric(image: Tensor, half: Sequence[float], *, border: Border) -> Tensor:
    """(...,H,W) filtered down and across by the symmetric kernel whose middle and one side `half` gives."""
    reach = len(half) - 1
    for axis in (-2, -1):
        wide, length = pad(image, reach, axis=axis, border=border), image.shape[axis]
        image = wide.narrow(axis, reach, length) * half[0]
        for distance, weight in enumerate(half[1:], start=1):
            before, after = (wide.narrow(axis, reach + side * distance, length) for side in (-1, 1))
            image = image.add(before + after, alpha=weight)
    return image


def pad(image: Tensor, width: int, *, axis: int, border: Border) -> Tensor:
    """(...,H,W) with `width` more rows (axis -2) or columns (-1) at both ends. Mirrors: `width` < length."""
    if width == 0:
        return image
    length = image.shape[axis]
    if border == "nearest":
        shape = list(image.shape)
        shape[axis] = width
        ends = image.narrow(axis, 0, 1).expand(shape), image.narrow(axis, length - 1, 1).expand(shape)
        return torch.cat([ends[0], image, ends[1]], dim=axis)
    skipped = 1 if border == "mirror" else 0  # the outermost pixel is not repeated
    before = image.narrow(axis, skipped, width).flip(axis)
    return torch.cat(
        [before, image, image.narrow(axis, length - skipped - width, width).flip(axis)], dim=axis
    )


def resample(image: Tensor, *, down: Taps, across: Taps) -> Tensor:
    """(N,H,W) -> (N,H',W')."""
    # Rows are picked far faster than columns, hence the turns.
    return rows(rows(image, down).transpose(1, 2).contiguous(), across).transpose(1, 2)


def rows(image: Tensor, taps: Taps) -> Tensor:
    """(N,H,W) -> (N,H',W)."""
    total = image.index_select(1, taps.places[0].to(image.device))
    if len(taps.places) == 1:
        return total  # its weight is 1
    if len(taps.places) == 2:
        return total.lerp(
            image.index_select(1, taps.places[1].to(image.device)), taps.weight[1].to(image.device)
        )
    total = total * taps.weight[0].to(image.device)
    for index, weight in zip(taps.places[1:], taps.weight[1:], strict=True):
        total = total.addcmul(image.index_select(1, index.to(image.device)), weight.to(image.device))
    return total


def taps_of(index: NDArray[np.int64], weight: NDArray[np.float64]) -> Taps:
    """From arrays [taps,rows], the weights of a row summing to 1."""
    return Taps(
        tuple(torch.from_numpy(np.ascontiguousarray(line)) for line in index),
        tuple(torch.from_numpy(line.astype(np.float32)[:, None]) for line in weight),
    )


@lru_cache(maxsize=256)
def enlarging_taps(kept: int, factor: float, length: int, *, first: int = 0) -> Taps:
    """scipy.ndimage.zoom of order 1 of the `kept` rows from `first` on, of whose result the middle `length` stay."""
    enlarged = round(kept * factor)
    margin = (enlarged - length) // 2
    place = np.arange(margin, margin + length) * ((kept - 1) / max(enlarged - 1, 1))
    before = np.clip(np.floor(place).astype(np.int64), 0, max(kept - 2, 0))
    share = place - before
    index = np.stack([before, np.minimum(before + 1, kept - 1)]) + first
    return taps_of(index, np.stack([1 - share, share]))
