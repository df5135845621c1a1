"""gaussian_blur, defocus_blur and zoom_blur: the same filter for every image."""

import math

import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.disk import disk
from robust.corruptions.separable import Taps, enlarging_taps, gaussian, rows

# N images; levels (N,3,H,W) are 0..255 in float32.


def gaussian_blur(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """skimage's filter, cut off at four sigma."""
    return gaussian(levels, tables.GAUSSIAN_BLUR[severity - 1])


def defocus_blur(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Mean over a disk with a softened edge, as OpenCV filters: see robust/corruptions/disk.py."""
    radius, sigma = tables.DEFOCUS_BLUR[severity - 1]
    return disk(radius, sigma).blur(levels)


def zoom_blur(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Mean of the image and of enlargements of its middle, each as scipy's zoom of order 1."""
    count, step = tables.ZOOM_BLUR[severity - 1]
    height, width = levels.shape[-2:]
    flat = levels.flatten(0, 1)
    turned = torch.zeros_like(flat.transpose(1, 2).contiguous())
    for number in range(count):
        down, across = (_enlarging(1 + number * step, length) for length in (height, width))
        turned = turned + rows(rows(flat, down).transpose(1, 2).contiguous(), across)
    return (levels + turned.transpose(1, 2).reshape(levels.shape)) / (count + 1)


def _enlarging(factor: float, length: int) -> Taps:
    kept = math.ceil(length / factor)
    return enlarging_taps(kept, factor, length, first=(length - kept) // 2)
