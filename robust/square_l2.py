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
from torch import Tensor

from robust.bumps import TINY, bumps_at, side_of, tiled, window
from robust.lanes import Lanes, choose, rows
from robust.noise import noise
from robust.square import QuerySearch, State, apart, signs
from robust.stream import at_step


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareL2(QuerySearch):
    """Windows of bumps, on the l2 sphere; the start is tiled with them."""

    @property
    def norm(self) -> Literal["l2"]:
        return "l2"

    def _start(self, lanes: Lanes) -> Tensor:
        return _on_sphere(tiled(lanes, "l2"), lanes)

    def _candidate(self, state: State) -> Tensor:
        return choose(state.step == 0, state.adversarial, self._exchanged(state))

    def _exchanged(self, state: State) -> Tensor:
        """The next candidate: the second window is emptied into the first."""
        lanes = state.lanes
        _, channels, height, width = lanes.clean.shape
        draws = apart(noise(at_step(lanes.seed, state.step, purpose=1), (5 + channels,)))
        side = apart(self.side(state.step - 1, height=height, width=width))
        first = window(draws[:, 0], draws[:, 1], side, height=height, width=width)
        second = window(draws[:, 2], draws[:, 3], side, height=height, width=width)
        delta = state.adversarial - lanes.clean
        held = (delta.square() * (first | second)).sum(dim=(1, 2, 3), keepdim=True)
        unused = (rows(lanes.eps, delta).square() - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp(
            min=0.0
        )
        reach = (unused / channels + held).sqrt()
        bump = bumps_at(draws[:, 0], draws[:, 1], side, draws[:, 4] < 0.5, norm="l2", like=delta)
        up_or_down = signs(draws[:, 5:], delta.dtype)[:, :, None, None]
        old = delta * first
        fresh = bump * up_or_down + old / (_channel_length(old) + TINY)
        fresh = fresh / (_channel_length(fresh) + TINY) * reach
        emptied = torch.where(second, 0.0, delta)
        return _on_sphere(torch.where(first, fresh, emptied), lanes)

    def side(self, query: Tensor, *, height: int, width: int) -> Tensor:
        """int64 [B], odd: side of the windows at `query` (0 is the first after the start)."""
        rescaled_to = self.queries if self.rescale else None
        return side_of(query, self.p_init, height=height, width=width, rescaled_to=rescaled_to)


def _on_sphere(delta: Tensor, lanes: Lanes) -> Tensor:
    """clean + delta at length eps, clipped to the box."""
    length = delta.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return (lanes.clean + delta / (length + TINY) * rows(lanes.eps, delta)).clamp(0.0, 1.0)


def _channel_length(delta: Tensor) -> Tensor:
    return delta.square().sum(dim=(2, 3), keepdim=True).sqrt()
