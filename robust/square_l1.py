"""Square Attack in l1: as in l2 (robust/square_l2.py), the budget of a perturbation moves from window to window.

Croce and Hein 2021 (arXiv:2103.01208), after Andriushchenko et al. 2020 (arXiv:1912.00049, Alg. 1 and 3). A candidate
clears one window, and gives what it held, and what of the radius was unused, to another one: half of what was there and
half of a fresh pair of bumps, steeper than in l2. Then it is projected on ball and box together (robust/l1_ball.py).

As in the published code: each channel of the new window gets, for every channel of the image, what the two windows held
in that one, and the whole unused length; the projection takes back what is too much. The ball is smaller by 1e-6 of its
radius, and the last row and column of positions are never drawn. Deviations: those of robust/square_l2.py.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust.bumps import TINY, bumps_at, side_of, tiled, window
from robust.l1_ball import projected
from robust.lanes import Lanes, choose, rows
from robust.noise import noise
from robust.square import QuerySearch, State, apart, signs
from robust.stream import at_step

INSIDE = 1.0 - 1e-6  # of the radius


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareL1(QuerySearch):
    """Windows of bumps, in the l1 ball; the start is tiled with them."""

    @property
    def norm(self) -> Literal["l1"]:
        return "l1"

    def _start(self, lanes: Lanes) -> Tensor:
        return _in_ball(tiled(lanes, "l1"), lanes)

    def _candidate(self, state: State) -> Tensor:
        return choose(state.step == 0, state.adversarial, self._exchanged(state))

    def _exchanged(self, state: State) -> Tensor:
        """The next candidate: the second window is emptied into the first."""
        lanes = state.lanes
        _, channels, height, width = lanes.clean.shape
        draws = apart(noise(at_step(lanes.seed, state.step, purpose=1), (5 + channels,)))
        side = apart(self._side(state.step - 1, height=height, width=width))
        first = window(draws[:, 0], draws[:, 1], side, height=height, width=width)
        second = window(draws[:, 2], draws[:, 3], side, height=height, width=width)
        delta = state.adversarial - lanes.clean
        unused = (rows(lanes.eps, delta) - delta.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0.0)
        reach = unused + channels * _channel_length(delta * (first | second))
        bump = bumps_at(draws[:, 0], draws[:, 1], side, draws[:, 4] < 0.5, norm="l1", like=delta)
        up_or_down = signs(draws[:, 5:], delta.dtype)[:, :, None, None]
        old = delta * first
        fresh = bump * up_or_down + old / (_channel_length(old) + TINY)
        fresh = fresh / (_channel_length(fresh) + TINY) * reach
        return _in_ball(torch.where(first, fresh, torch.where(second, 0.0, delta)), lanes)

    def _side(self, query: Tensor, *, height: int, width: int) -> Tensor:
        rescaled_to = self.queries if self.rescale else None
        return side_of(query, self.p_init, height=height, width=width, rescaled_to=rescaled_to)


def _in_ball(delta: Tensor, lanes: Lanes) -> Tensor:
    return (lanes.clean + projected(delta, lanes.clean, INSIDE * lanes.eps)).clamp(0.0, 1.0)


def _channel_length(delta: Tensor) -> Tensor:
    return delta.abs().sum(dim=(2, 3), keepdim=True)
