"""checkerboard_cutout of ImageNet-C-bar: some squares of a turned checkerboard become grey."""

import math

import torch
from torch import Tensor

from robust.corruptions.draws import stream, uniform
from robust.corruptions.tables import C_BAR
from robust.corruptions.waves import columns, places

# N images; levels (N,3,H,W) are 0..255 in float32.
_CELLS = 64  # along each side of the table: more than a diagonal has squares
_GREY = 128.0


def checkerboard_cutout(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Of the squares of one colour a share is cut out; a square's side is 0.1 to 0.25 of the shorter side."""
    share = C_BAR["checkerboard_cutout"][severity - 1] * 0.1
    turn, size = columns(uniform(seed, 2))
    angle, scale = 2 * math.pi * turn, (0.1 + 0.15 * size) * min(levels.shape[-2:])
    y, x = places(levels)
    down = (torch.cos(angle) * y + torch.sin(angle) * x) / scale
    right = (torch.cos(angle) * x - torch.sin(angle) * y) / scale
    is_same = (down.floor() - right.floor()).remainder(2) == 0
    # Towards zero, as in the original: the squares about the origin share a draw with those of the other side.
    cell = [(place.trunc() + _CELLS / 2).clamp(0, _CELLS - 1).to(torch.int64) for place in (down, right)]
    chosen = uniform(stream(seed, "checkerboard_cutout", severity, 1), _CELLS * _CELLS) < share
    index = (cell[0] * _CELLS + cell[1]).flatten(1)
    is_chosen = torch.gather(chosen, 1, index).reshape(is_same.shape)
    return torch.where((is_same & is_chosen)[:, None], _GREY, levels)
