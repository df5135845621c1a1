"""Pixels fetched from anywhere in a batch: the three channels of one travel in one int32, so one gather moves all."""

from typing import Literal

import torch
from torch import Tensor

Border = Literal["mirror", "reflect", "zero"]  # cb|abc|ba, cba|abc|cba or 00|abc|00

# N images, H rows, W columns, P places to fetch.
_LANE = 10  # bits of a channel, of which two hold quarters of a level
_QUARTERS = 4
_LANE_MASK = (1 << _LANE) - 1


def pack(levels: Tensor) -> Tensor:
    """(N,3,H,W) from 0 to 255 -> int32 (N,H*W), rounded to quarters of a level."""
    red, green, blue = (levels * _QUARTERS + 0.5).to(torch.int32).flatten(2).unbind(1)
    return red | green << _LANE | blue << 2 * _LANE


def unpack(packed: Tensor) -> Tensor:
    """int32 (N,P) -> float32 (N,3,P)."""
    shift = _LANE * torch.arange(3, dtype=torch.int32, device=packed.device)[:, None]
    lanes = torch.bitwise_right_shift(packed[:, None], shift) & _LANE_MASK
    return lanes.to(torch.float32) * (1 / _QUARTERS)


def fetch(packed: Tensor, index: Tensor) -> Tensor:
    """int32 (N,H*W) at int32 (N,P) -> int32 (N,P)."""
    return torch.gather(packed, 1, index)


def bilinear(packed: Tensor, y: Tensor, x: Tensor, *, height: int, width: int, border: Border) -> Tensor:
    """float32 (N,3,P) at y and x (N,P), in pixels from the centre of the first; mirrors reach one image far."""
    top, left = y.floor(), x.floor()
    down, right = (y - top)[:, None], (x - left)[:, None]
    rows = [_folded(place, height, border) * width for place in (top, top + 1)]
    columns = [_folded(place, width, border) for place in (left, left + 1)]
    taps = [[unpack(fetch(packed, (row + column).to(torch.int32))) for column in columns] for row in rows]
    if border == "zero":
        for step_y in (0, 1):
            for step_x in (0, 1):
                inside = _inside(top + step_y, height) & _inside(left + step_x, width)
                taps[step_y][step_x] = torch.where(inside[:, None], taps[step_y][step_x], 0.0)
    upper, lower = (torch.lerp(pair[0], pair[1], right) for pair in taps)
    return torch.lerp(upper, lower, down)


def _inside(place: Tensor, length: int) -> Tensor:
    return (place >= 0) & (place < length)


def _folded(place: Tensor, length: int, border: Border) -> Tensor:
    """Whole numbers -> such from 0 to length - 1. By absolute values, as comparisons cost a CPU five times as much."""
    if border == "mirror":
        place = (length - 1) - ((length - 1) - place.abs()).abs()
    elif border == "reflect":
        place = length - (length - (place + 0.5).abs()).abs() - 0.5
    return place.clamp(0, length - 1)
