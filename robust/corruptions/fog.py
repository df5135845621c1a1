"""fog: a plasma fractal of the diamond-square algorithm, and less contrast."""

import torch
from torch import Tensor

from robust.corruptions import tables
from robust.noise import noise

# N images; levels (N,3,H,W) are 0..255 in float32.


def fog(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """The fractal's side is the next power of two from the longer side on: 256 for 224 px, as in the original."""
    thickness, decay = tables.FOG[severity - 1]
    height, width = levels.shape[-2:]
    side = 1 << (max(height, width, 2) - 1).bit_length()
    cloud = plasma(seed, side, decay)[:, None, :height, :width]
    brightest = levels.amax(dim=(1, 2, 3), keepdim=True)
    fogged = levels + 255 * thickness * cloud
    return fogged * (brightest / (brightest + 255 * thickness))


def plasma(seed: Tensor, side: int, decay: float) -> Tensor:
    """(N,side,side) from 0 to 1, a torus; `side` is a power of two.

    As in the original the noise of a level has the square of its amplitude, which shrinks by `decay`.
    """
    num = seed.shape[0]
    draws = 2 * noise(seed, (side * side,)) - 1
    grid = torch.zeros(num, 1, 1, device=seed.device)
    used, amplitude = 0, 100.0
    while grid.shape[1] < side:
        few = grid.shape[1]
        middle, right, below = (
            draws[:, used + part * few**2 : used + (part + 1) * few**2].reshape(num, few, few) * amplitude**2
            for part in range(3)
        )
        beside = grid + grid.roll(-1, 1)
        middle = middle + (beside + beside.roll(-1, 2)) / 4
        right = right + (middle + middle.roll(1, 1) + grid + grid.roll(-1, 2)) / 4
        below = below + (middle + middle.roll(1, 2) + grid + grid.roll(-1, 1)) / 4
        used, amplitude = used + 3 * few**2, amplitude / decay
        grid = _woven(grid, right, below, middle)
    lowest, highest = grid.amin(dim=(1, 2), keepdim=True), grid.amax(dim=(1, 2), keepdim=True)
    return (grid - lowest) / (highest - lowest)


def _woven(here: Tensor, right: Tensor, below: Tensor, middle: Tensor) -> Tensor:
    """(N,n,n) each -> (N,2n,2n): the four are a cell."""
    num, side, _ = here.shape
    upper, lower = torch.stack([here, right], dim=-1), torch.stack([below, middle], dim=-1)
    return torch.stack([upper.reshape(num, side, -1), lower.reshape(num, side, -1)], dim=2).reshape(
        num, 2 * side, 2 * side
    )
