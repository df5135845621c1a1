"""What Square moves about in l2 and l1: bumps of length 1 in windows, one up beside one down.

Around the middle of each half of a window lie squares one over the other, the one that reaches k places from it
1 / (k+1)^2 high in l2 and 1 / (k+1)^4 in l1 (Andriushchenko et al. 2020, arXiv:1912.00049, section 4.2, and the code of
its authors, which has l1 too). `row` (B,H) and `column` (B,W) int64 are places inside the lane's window of `side` [B],
outside elsewhere; everything else is made of comparisons, so that one shape serves all windows.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.lanes import Lanes
from robust.noise import noise
from robust.square import HALVINGS, by_query, signs, span

BumpNorm = Literal["l2", "l1"]
TILES = 5  # along the height, at the start
LEAST_SIDE = 3
TINY = 1e-12


def side_of(query: Tensor, p_init: float, *, height: int, width: int, rescaled_to: int | None) -> Tensor:
    """int64 [B], odd: side of the windows at `query` [B] (0 is the first after the start)."""
    sides = [
        max(round((p_init / 2**level * height * width) ** 0.5), LEAST_SIDE) | 1
        for level in range(len(HALVINGS) + 1)
    ]
    side = by_query(query, sides, rescaled_to=rescaled_to)
    return side.clamp(max=_largest_odd(min(height, width)))


def window(y: Tensor, x: Tensor, side: Tensor, *, height: int, width: int) -> Tensor:
    """bool (B,1,H,W), from uniform draws [B]."""
    return (span(y, side, height)[:, :, None] & span(x, side, width)[:, None, :])[:, None]


def bumps_at(
    y: Tensor, x: Tensor, side: Tensor, is_turned: Tensor, *, norm: BumpNorm, like: Tensor
) -> Tensor:
    """`bumps` in the window that `window` makes of the same draws, (B,1,H,W)."""
    _, _, height, width = like.shape
    row, column = (_places(draw, side, length) for draw, length in ((y, height), (x, width)))
    return bumps(row, column, side, is_turned, norm=norm, dtype=like.dtype)[:, None]


def bumps(
    row: Tensor, column: Tensor, side: Tensor, is_turned: Tensor, *, norm: BumpNorm, dtype: torch.dtype
) -> Tensor:
    """(B,H,W) of length 1: up in the upper half of a window and down in the lower one; turned, left and right."""
    size = side[:, None]
    upper = size // 2  # rows of the upper half
    halves = [_half(place, upper, size, norm, dtype) for place in (row, column)]
    wholes = [_height_at((place - upper).abs(), upper, norm, dtype) for place in (row, column)]
    turned = is_turned[:, None]
    down = torch.where(turned, wholes[0], halves[0])[:, :, None]
    across = torch.where(turned, halves[1], wholes[1])[:, None, :]
    is_inside = _within(row, size)[:, :, None] & _within(column, size)[:, None, :]
    # Squares: the height is that of the farther of the two coordinates.
    height = torch.minimum(down, across) * is_inside
    is_upper = torch.where(is_turned[:, None, None], (column < upper)[:, None, :], (row < upper)[:, :, None])
    one, other = height * is_upper, height * ~is_upper
    shape = _length(one, norm), _length(other, norm)
    made = one / shape[0].clamp(min=TINY) - other / shape[1].clamp(min=TINY)
    return made / _length(made, norm).clamp(min=TINY)


def tiled(lanes: Lanes, norm: BumpNorm) -> Tensor:
    """The start, of no particular length: a tile of bumps beside the other, each with signs of its own."""
    _, channels, height, width = lanes.clean.shape
    side = max(height // TILES, 1)
    margin = max((height - side * TILES) // 2, 0)
    down, across = height // side, max(width // side, 1)
    draws = noise(lanes.seed, (1 + channels, down, across))
    place = torch.arange(side, device=lanes.seed.device)[None, :]
    sides = torch.full_like(place[0, :1], side)
    dtype = lanes.clean.dtype
    upright, turned = (
        bumps(place, place, sides, sides < limit, norm=norm, dtype=dtype)[0] for limit in (0, side + 1)
    )
    is_turned = _spread(draws[:, :1] < 0.5, side)
    sign = _spread(signs(draws[:, 1:], dtype), side)
    grid = [tile.repeat(down, across) for tile in (upright, turned)]
    tiles = torch.where(is_turned, grid[1], grid[0]) * sign
    kept = tiles[:, :, : height - margin, : width - margin]
    right, below = width - margin - kept.shape[3], height - margin - kept.shape[2]
    return F.pad(kept, (margin, right, margin, below))


def _half(place: Tensor, upper: Tensor, size: Tensor, norm: BumpNorm, dtype: torch.dtype) -> Tensor:
    """Heights along the divided axis: the middle of the half that a place is in."""
    is_upper = place < upper
    middle = torch.where(is_upper, upper // 2, upper + (size - upper) // 2)
    return _height_at((place - middle).abs(), upper, norm, dtype)


def _height_at(distance: Tensor, reach: Tensor, norm: BumpNorm, dtype: torch.dtype) -> Tensor:
    """Sum over k from `distance` to `reach` of a square's height; int64 (B,L) and (B,1) -> (B,L)."""
    most = distance.shape[1] + 1
    steep = torch.arange(most + 1, device=distance.device, dtype=dtype).add(1.0).square()
    terms = (steep if norm == "l2" else steep.square()).reciprocal()
    # From the small end: differences of the long sums would lose the last digits of the small heights.
    tail = terms.flip(0).cumsum(0).flip(0)
    start = distance.clamp(max=most)
    end = (reach + 1).clamp(max=most)
    return _at(tail, start) - _at(tail, torch.maximum(start, end.expand_as(start)))


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(index.shape)


def _within(place: Tensor, size: Tensor) -> Tensor:
    return (place >= 0) & (place < size)


def _places(draw: Tensor, side: Tensor, length: int) -> Tensor:
    first = (draw * (length - side).to(draw.dtype)).to(torch.int64)
    return torch.arange(length, device=draw.device)[None, :] - first[:, None]


def _spread(tile: Tensor, side: int) -> Tensor:
    """(B,C,h,w) -> (B,C,h*side,w*side), each number `side` times in both directions."""
    batch, channels, height, width = tile.shape
    wide = tile[:, :, :, None, :, None].expand(batch, channels, height, side, width, side)
    return wide.reshape(batch, channels, height * side, width * side)


def _length(plane: Tensor, norm: BumpNorm) -> Tensor:
    if norm == "l1":
        return plane.abs().sum(dim=(1, 2), keepdim=True)
    return plane.square().sum(dim=(1, 2), keepdim=True).sqrt()


def _largest_odd(number: int) -> int:
    return max(number - (number + 1) % 2, 1)
