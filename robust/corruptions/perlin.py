"""perlin_noise of ImageNet-C-bar: turbulence of five octaves, mixed with the image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust.corruptions.draws import stream, uniform
from robust.corruptions.tables import C_BAR

# N images; levels (N,3,H,W) are 0..255 in float32; L lattice points along a side.
_TABLE = 256  # gradients, which a permutation spreads over the lattice
_OCTAVES = (1, 2, 4, 8, 16)
_CELLS = 7  # of the first octave along the shorter side


def perlin_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Half plus half of the turbulence, cut off at 1, takes a share of each pixel."""
    share = C_BAR["perlin_noise"][severity - 1] * 0.05
    order = uniform(stream(seed, "perlin_noise", severity, 1), _TABLE).argsort(dim=1, stable=True)
    gradient = 2 * uniform(seed, 2 * _TABLE).reshape(-1, _TABLE, 2) - 1
    gradient = gradient / gradient.norm(dim=2, keepdim=True).clamp(min=1e-6)
    turbulence = sum(
        (_octave(levels, order, gradient, frequency).abs() / frequency for frequency in _OCTAVES),
        start=torch.zeros_like(levels[:, 0]),
    )
    noise = (0.5 + 0.5 * turbulence).clamp(0.0, 1.0)[:, None]
    return (1 - share) * levels + 255 * share * noise


def _octave(levels: Tensor, order: Tensor, gradient: Tensor, frequency: int) -> Tensor:
    """(N,H,W): Perlin's gradient noise. Lattice and pixels are fixed, so only gradients are looked up."""
    height, width = levels.shape[-2:]
    step = frequency * _CELLS / min(height, width)
    y, x = (torch.arange(length, device=levels.device) * step for length in (height, width))
    top, left = (torch.from_numpy(_cells(length, step)).to(levels.device) for length in (height, width))
    lattice = _lattice(order, gradient, int(_cells(height, step)[-1]) + 2, int(_cells(width, step)[-1]) + 2)
    dy, dx = (y - top)[:, None], (x - left)[None, :]
    corners = [
        [lattice.index_select(1, top + down).index_select(2, left + right) for right in (0, 1)]
        for down in (0, 1)
    ]
    values = [
        [
            corners[down][right][..., 0] * (dy - down) + corners[down][right][..., 1] * (dx - right)
            for right in (0, 1)
        ]
        for down in (0, 1)
    ]
    across = dx**2 * (3 - 2 * dx)
    upper, lower = (torch.lerp(row[0], row[1], across.expand_as(row[0])) for row in values)
    return 1.5 * torch.lerp(upper, lower, (dy**2 * (3 - 2 * dy)).expand_as(upper))


def _cells(length: int, step: float) -> NDArray[np.int64]:
    cells: NDArray[np.int64] = np.floor(np.arange(length) * step).astype(np.int64)
    return cells


def _lattice(order: Tensor, gradient: Tensor, tall: int, broad: int) -> Tensor:
    """(N,L,L',2)"""
    num = order.shape[0]
    y = torch.arange(tall, device=order.device) % _TABLE
    x = torch.arange(broad, device=order.device)
    index = (order.index_select(1, y)[:, :, None] + x) % _TABLE
    index = torch.gather(order, 1, index.flatten(1))
    return torch.gather(gradient, 1, index[..., None].expand(-1, -1, 2)).reshape(num, tall, broad, 2)
