"""motion_blur, and the streaks of snow: a half Gaussian along a line of whole-pixel steps, edges repeated.

This is ImageMagick's motion blur, which the original calls, as `imagecorruptions` writes it out. Angles are drawn from
4096, whose steps are in a table that the host computes: a step that falls between two pixels goes the same way on every
machine.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import whole
from robust.corruptions.separable import pad

# N images of C channels, H rows, W columns; T steps.
_ANGLES = 4096


def motion_blur(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """From -45 to 45 degrees."""
    radius, sigma = tables.MOTION_BLUR[severity - 1]
    return streak(levels, seed, radius=radius, sigma=sigma, first_degree=-45)


def streak(image: Tensor, seed: Tensor, *, radius: int, sigma: float, first_degree: int) -> Tensor:
    """(N,C,H,W) blurred along a direction of each image's own in the 90 degrees from `first_degree` on."""
    angle = whole(seed, 1, _ANGLES)[:, 0]
    weight = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    weights = (weight / weight.sum()).tolist()
    steps = _steps(radius, first_degree)
    if image.device.type == "cpu":
        return _by_slices(image, steps[angle], weights, reach=2 * radius)
    return _by_gathers(image, steps.to(image.device).index_select(0, angle), weights, reach=2 * radius)


@lru_cache(maxsize=16)
def _steps(radius: int, first_degree: int) -> Tensor:
    """int32 [angles,T,2]: how far down and right each step's pixel lies."""
    degrees = first_degree + 90 * (np.arange(_ANGLES) + 0.5) / _ANGLES
    direction = np.stack([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))], axis=-1)
    steps = np.ceil(np.arange(2 * radius + 1)[:, None] * direction[:, None] - 0.5)
    return torch.from_numpy(steps.astype(np.int32))


def _wide(image: Tensor, reach: int) -> Tensor:
    return pad(pad(image, reach, axis=-1, border="nearest"), reach, axis=-2, border="nearest")


def _by_slices(image: Tensor, steps: Tensor, weights: list[float], *, reach: int) -> Tensor:
    """Reads the steps on the host, which is where they are, and so takes slices: four times as fast as gathers."""
    height, width = image.shape[-2:]
    wide, total = _wide(image, reach), torch.zeros_like(image)
    for one, out, line in zip(wide, total, steps.tolist(), strict=True):
        for (down, right), weight in zip(line, weights, strict=True):
            shifted = one[:, reach + down : reach + down + height, reach + right : reach + right + width]
            out.add_(shifted, alpha=weight)
    return total


def _by_gathers(image: Tensor, steps: Tensor, weights: list[float], *, reach: int) -> Tensor:
    """The same sum in the same order, with a fixed shape."""
    num, channels, height, width = image.shape
    flat = _wide(image, reach).flatten(2)
    y = torch.arange(reach, reach + height, device=image.device, dtype=torch.int32)[:, None]
    x = torch.arange(reach, reach + width, device=image.device, dtype=torch.int32)[None, :]
    row = width + 2 * reach
    place = (y * row + x).flatten()
    offset = steps[..., 0] * row + steps[..., 1]
    total = torch.zeros_like(image).flatten(2)
    for number, weight in enumerate(weights):
        index = (place + offset[:, number, None])[:, None].expand(num, channels, -1)
        total = total.add(torch.gather(flat, 2, index), alpha=weight)
    return total.reshape(image.shape)
