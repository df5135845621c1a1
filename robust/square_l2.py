"""Square Attack in l2: random search that moves the budget of a perturbation from window to window, by queries of the
logits alone (Andriushchenko et al. 2020, arXiv:1912.00049, Alg. 1 and 3).

A pure step over lanes. Step 0 asks about the start, each later one about one more candidate, so a lane that is never
broken costs `queries` + 1 forward passes. A candidate clears one window, and gives what it held, and what of the radius
was unused, to another window: half of what was there and half of a fresh pair of bumps, one up and one down.

As in the published code, where it differs from the paper: each channel of the new window gets the length that the two
windows hold in all channels together (the whole is brought back to length eps afterwards), and the last row and column
of positions are never drawn. Deviations: windows, signs and orientations are each lane's own (there, a batch shares the
first and the last); where h // 5 tiles do not divide the image evenly, or it is not square, border tiles are cut.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Lanes, Passes, alive, choose, rows
from robust.noise import noise
from robust.square import HALVINGS, State, by_query, margin_of, signs, span
from robust.stream import at_step

TILES = 5  # along the height, at the start
LEAST_SIDE = 3
TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareL2:
    """`queries` candidates on the l2 sphere. `rescale` stretches the schedule of sizes over fewer queries."""

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = False

    @property
    def name(self) -> str:
        return "square"

    @property
    def norm(self) -> Literal["l2"]:
        return "l2"

    @property
    def steps(self) -> int:
        return self.queries + 1

    @property
    def passes(self) -> Passes:
        return Passes(forward=1, backward=0)

    def init(self, lanes: Lanes) -> State:
        """Bumps in tiles all over the image, about which nothing was asked."""
        none = torch.zeros_like(lanes.seed)
        return State(
            lanes=lanes,
            step=none,
            found=none != 0,
            adversarial=_on_sphere(_tiled(lanes), lanes),
            margin=torch.full_like(lanes.eps, torch.inf),
        )

    @torch.no_grad()
    def step(self, predict: Predict, state: State) -> State:
        """A candidate, and whether it is better."""
        lanes, works = state.lanes, alive(state, self.steps)
        is_start = rows(state.step == 0, lanes.clean)
        candidate = torch.where(is_start, state.adversarial, self._exchanged(state))
        margin = margin_of(predict(candidate), lanes.label).to(state.margin.dtype)
        is_hit = works & ~(margin > 0.0)  # NaN too
        better = works & ((margin < state.margin) | is_hit)
        return State(
            lanes=lanes,
            step=state.step + works.to(torch.int64),
            found=state.found | is_hit,
            adversarial=choose(better, candidate, state.adversarial),
            margin=torch.where(better, margin, state.margin),
        )

    def _exchanged(self, state: State) -> Tensor:
        """The next candidate: the second window is emptied into the first."""
        lanes = state.lanes
        _, channels, height, width = lanes.clean.shape
        draws = noise(at_step(lanes.seed, state.step, purpose=1), (5 + channels,))
        side = self.side(state.step - 1, height=height, width=width)
        first = _window(draws[:, 0], draws[:, 1], side, height=height, width=width)
        second = _window(draws[:, 2], draws[:, 3], side, height=height, width=width)
        delta = state.adversarial - lanes.clean
        held = (delta.square() * (first | second)).sum(dim=(1, 2, 3), keepdim=True)
        unused = (rows(lanes.eps, delta).square() - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(
            min=0.0
        )
        reach = (unused / channels + held).sqrt()
        bump = _bumps_at(draws[:, 0], draws[:, 1], side, draws[:, 4] < 0.5, like=delta)
        up_or_down = signs(draws[:, 5:], delta.dtype)[:, :, None, None]
        old = delta * first
        fresh = bump * up_or_down + old / (_channel_length(old) + TINY)
        fresh = fresh / (_channel_length(fresh) + TINY) * reach
        emptied = torch.where(second, 0.0, delta)
        return _on_sphere(torch.where(first, fresh, emptied), lanes)

    def side(self, query: Tensor, *, height: int, width: int) -> Tensor:
        """int64 [B], odd: side of the windows at `query` (0 is the first after the start)."""
        sides = [
            max(round((self.p_init / 2**level * height * width) ** 0.5), LEAST_SIDE) | 1
            for level in range(len(HALVINGS) + 1)
        ]
        side = by_query(query, sides, rescaled_to=self.queries if self.rescale else None)
        return side.clamp(max=_largest_odd(min(height, width)))


def bumps(row: Tensor, column: Tensor, side: Tensor, is_turned: Tensor, *, dtype: torch.dtype) -> Tensor:
    """(B,H,W) of length 1: a bump up in the upper half of a window and a bump down in the lower one; turned, left and
    right. `row` (B,H) and `column` (B,W) int64: places inside the lane's window of `side` [B], outside elsewhere.

    Around a half's middle lie squares one over the other, the one that reaches k places from it 1 / (k+1)^2 high.
    """
    size = side[:, None]
    upper = size // 2  # rows of the upper half
    halves = [_half(place, upper, size, dtype) for place in (row, column)]
    wholes = [_height_at((place - upper).abs(), upper, dtype) for place in (row, column)]
    turned = is_turned[:, None]
    down = torch.where(turned, wholes[0], halves[0])[:, :, None]
    across = torch.where(turned, halves[1], wholes[1])[:, None, :]
    is_inside = _within(row, size)[:, :, None] & _within(column, size)[:, None, :]
    # Squares: the height is that of the farther of the two coordinates.
    height = torch.minimum(down, across) * is_inside
    is_upper = torch.where(is_turned[:, None, None], (column < upper)[:, None, :], (row < upper)[:, :, None])
    one, other = height * is_upper, height * ~is_upper
    shape = _length(one), _length(other)
    made = one / shape[0].clamp(min=TINY) - other / shape[1].clamp(min=TINY)
    return made / _length(made).clamp(min=TINY)


def _half(place: Tensor, upper: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """Heights along the divided axis: the middle of the half that a place is in."""
    is_upper = place < upper
    middle = torch.where(is_upper, upper // 2, upper + (size - upper) // 2)
    return _height_at((place - middle).abs(), upper, dtype)


def _height_at(distance: Tensor, reach: Tensor, dtype: torch.dtype) -> Tensor:
    """sum over k from `distance` to `reach` of 1 / (k+1)^2; int64 (B,L) and (B,1) -> (B,L)."""
    most = distance.shape[1] + 1
    terms = torch.arange(most + 1, device=distance.device, dtype=dtype).add(1.0).square().reciprocal()
    # From the small end: differences of the long sums would lose the last digits of the small heights.
    tail = terms.flip(0).cumsum(0).flip(0)
    start = distance.clamp(max=most)
    end = (reach + 1).clamp(max=most)
    return _at(tail, start) - _at(tail, torch.maximum(start, end.expand_as(start)))


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(index.shape)


def _within(place: Tensor, size: Tensor) -> Tensor:
    return (place >= 0) & (place < size)


def _window(y: Tensor, x: Tensor, side: Tensor, *, height: int, width: int) -> Tensor:
    """bool (B,1,H,W), from uniform draws [B]."""
    return (span(y, side, height)[:, :, None] & span(x, side, width)[:, None, :])[:, None]


def _bumps_at(y: Tensor, x: Tensor, side: Tensor, is_turned: Tensor, *, like: Tensor) -> Tensor:
    """`bumps` in the window that `_window` makes of the same draws, (B,1,H,W)."""
    _, _, height, width = like.shape
    row, column = (_places(draw, side, length) for draw, length in ((y, height), (x, width)))
    return bumps(row, column, side, is_turned, dtype=like.dtype)[:, None]


def _places(draw: Tensor, side: Tensor, length: int) -> Tensor:
    first = (draw * (length - side).to(draw.dtype)).to(torch.int64)
    return torch.arange(length, device=draw.device)[None, :] - first[:, None]


def _tiled(lanes: Lanes) -> Tensor:
    """The start, before it is brought to length eps: a tile of bumps beside the other, each with signs of its own."""
    _, channels, height, width = lanes.clean.shape
    side = max(height // TILES, 1)
    margin = max((height - side * TILES) // 2, 0)
    down, across = height // side, max(width // side, 1)
    draws = noise(lanes.seed, (1 + channels, down, across))
    place = torch.arange(side, device=lanes.seed.device)[None, :]
    sides = torch.full_like(place[0, :1], side)
    dtype = lanes.clean.dtype
    upright, turned = (bumps(place, place, sides, sides < limit, dtype=dtype)[0] for limit in (0, side + 1))
    is_turned = _spread(draws[:, :1] < 0.5, side)
    sign = _spread(signs(draws[:, 1:], dtype), side)
    grid = [tile.repeat(down, across) for tile in (upright, turned)]
    tiles = torch.where(is_turned, grid[1], grid[0]) * sign
    kept = tiles[:, :, : height - margin, : width - margin]
    right, below = width - margin - kept.shape[3], height - margin - kept.shape[2]
    return F.pad(kept, (margin, right, margin, below))


def _spread(tile: Tensor, side: int) -> Tensor:
    """(B,C,h,w) -> (B,C,h*side,w*side), each number `side` times in both directions."""
    batch, channels, height, width = tile.shape
    wide = tile[:, :, :, None, :, None].expand(batch, channels, height, side, width, side)
    return wide.reshape(batch, channels, height * side, width * side)


def _on_sphere(delta: Tensor, lanes: Lanes) -> Tensor:
    """clean + delta at length eps, clipped to the box."""
    length = delta.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return (lanes.clean + delta / (length + TINY) * rows(lanes.eps, delta)).clamp(0.0, 1.0)


def _channel_length(delta: Tensor) -> Tensor:
    return delta.square().sum(dim=(2, 3), keepdim=True).sqrt()


def _length(plane: Tensor) -> Tensor:
    return plane.square().sum(dim=(1, 2), keepdim=True).sqrt()


def _largest_odd(number: int) -> int:
    return max(number - (number + 1) % 2, 1)
