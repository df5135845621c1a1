"""caustic_refraction of ImageNet-C-bar: the image through water that light plays on."""

import math

import torch
from torch import Tensor

from robust.corruptions.draws import uniform
from robust.corruptions.pixels import bilinear, pack
from robust.corruptions.separable import gaussian_half, symmetric
from robust.corruptions.tables import C_BAR
from robust.corruptions.waves import columns, places

# N images; levels (N,3,H,W) are 0..255 in float32; draws (N,1,1) each.
_INDEX = 4.0  # of refraction
_STRAIGHT = 1 - 1e-3  # cosine from which on light is not refracted


def caustic_refraction(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Pixels are fetched from where the slope of the light refracts to, and lit by that slope."""
    strength = C_BAR["caustic_refraction"][severity - 1]
    height, width = levels.shape[-2:]
    side = min(height, width)
    time, size = columns(uniform(seed, 2))
    light = _caustics(levels, 0.5 + 1.5 * time, (0.75 + 0.5 * size) * side)
    light = symmetric(light, gaussian_half(1.0), border="reflect")
    around = torch.nn.functional.pad(light, (1, 1, 1, 1))
    down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    right = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]
    # The normal is (down, right, 1) made unit; Snell's law for light that comes straight, solved for its shift.
    length = torch.sqrt(down**2 + right**2 + 1)
    bend = torch.sqrt(1 - (1 - length**-2) / _INDEX**2) - 1 / (length * _INDEX)
    bend = torch.where(1 / length >= _STRAIGHT, 0.0, bend / length) * (strength * 0.05 * side)
    y, x = places(levels)
    fetched = bilinear(
        pack(levels),
        (y + bend * down).flatten(1),
        (x + bend * right).flatten(1),
        height=height,
        width=width,
        border="zero",
    )
    lit = 255 * strength * 0.2 * (down - right)
    return fetched.reshape(levels.shape) + lit[:, None]


def _caustics(levels: Tensor, time: Tensor, size: Tensor) -> Tensor:
    """(N,H,W) from 0 to 1."""
    start = [(place / size - (place / size).floor()) * (2 * math.pi) - 250 for place in places(levels)]
    first, second = start
    total = torch.ones_like(first * second)
    for number in range(5):
        t = time * (1 - 3.5 / (number + 1))
        moved = (
            start[0] + torch.cos(t - first) + torch.sin(t + second),
            start[1] + torch.sin(t - second) + torch.cos(t + first),
        )
        first, second = moved
        down = start[0] * 0.005 / torch.sin(first + t)
        right = start[1] * 0.005 / torch.cos(second + t)
        total = total + 1 / torch.sqrt(down**2 + right**2)
    return ((1.17 - (total / 5) ** 1.4).abs() ** 8).clamp(0.0, 1.0)
