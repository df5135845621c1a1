"""Square Attack: random search with squares, by queries of the logits alone (Andriushchenko et al. 2020,
arXiv:1912.00049, Alg. 1 and 2); linf. For l2 and l1: robust/square_l2.py, robust/square_l1.py.

A pure step over lanes. Step 0 asks about the start, each later one about one more candidate, so a lane that is never
broken costs `queries` + 1 forward passes. As in the published code the last row and column of positions are never
drawn, and the side follows the image's own height and width. Deviations: every lane has its own square and colours
(there, a batch shares one), from its question's own random stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Lanes, Passes, alive, choose, overlay, rows
from robust.noise import noise
from robust.stream import at_step

# The share of pixels p is halved behind each of these queries (of 10,000).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class State(NamedTuple):
    """Where the lanes stand; B is the first axis of everything."""

    lanes: Lanes
    step: Tensor  # int64 [B]
    found: Tensor  # bool [B]
    adversarial: Tensor  # (B,3,H,W) of the smallest margin so far; the start before the first look
    margin: Tensor  # [B] there; infinite before the first look


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySearch(ABC):
    """`queries` candidates, one after the other. `rescale` stretches the schedule of sizes over fewer queries."""

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = False

    @property
    def name(self) -> str:
        return "square"

    @property
    def steps(self) -> int:
        return self.queries + 1

    @property
    def passes(self) -> Passes:
        return Passes(forward=1, backward=0)

    def init(self, lanes: Lanes) -> State:
        """The start, about which nothing was asked."""
        none = torch.zeros_like(lanes.seed)
        margin = torch.full_like(lanes.eps, torch.inf)
        return State(lanes, none, none != 0, self._start(lanes), margin)

    @torch.no_grad()
    def step(self, predict: Predict, state: State) -> State:
        """A candidate instead of the best so far, in the lanes that work and where it is better."""
        works, candidate = alive(state, self.steps), self._candidate(state)
        margin = margin_of(predict(candidate), state.lanes.label).to(state.margin.dtype)
        is_hit = works & ~(margin > 0.0)  # NaN too
        better = works & ((margin < state.margin) | is_hit)
        return State(
            lanes=state.lanes,
            step=state.step + works.to(torch.int64),
            found=state.found | is_hit,
            adversarial=choose(better, candidate, state.adversarial),
            margin=torch.where(better, margin, state.margin),
        )

    @abstractmethod
    def _start(self, lanes: Lanes) -> Tensor:
        """The first point (B,3,H,W) of each lane, in ball and box."""

    @abstractmethod
    def _candidate(self, state: State) -> Tensor:
        """The next point (B,3,H,W) to ask about; the start itself at step 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(QuerySearch):
    """Squares of one colour, in the linf ball; the start is striped."""

    @property
    def norm(self) -> Literal["linf"]:
        return "linf"

    def _start(self, lanes: Lanes) -> Tensor:
        return _stripes(lanes)

    def _candidate(self, state: State) -> Tensor:
        lanes = state.lanes
        _, channels, height, width = lanes.clean.shape
        draws = apart(noise(at_step(lanes.seed, state.step, purpose=1), (2 + channels,)))
        side = apart(self._side(state.step - 1, height=height, width=width))
        down, across = span(draws[:, 0], side, height), span(draws[:, 1], side, width)
        down = (down & (state.step > 0)[:, None]).to(draws.dtype)
        inside = (down[:, :, None] * across.to(draws.dtype)[:, None, :])[:, None].to(lanes.clean.dtype)
        # All that was tried lies on the border of ball or box, so the published move by +-2 eps, brought back, ends
        # where the move by +-eps from the clean image does: three passes over the images where that takes eight.
        move = rows(lanes.eps, lanes.clean) * signs(draws[:, 2:], lanes.clean.dtype)[:, :, None, None]
        return overlay(inside, (lanes.clean + move).clamp(0.0, 1.0), state.adversarial)

    def _side(self, query: Tensor, *, height: int, width: int) -> Tensor:
        """int64 [B]: side of the square at `query` (0 is the first after the start)."""
        sides = [
            max(round((self.p_init / 2**level * height * width) ** 0.5), 1)
            for level in range(len(HALVINGS) + 1)
        ]
        rescaled_to = self.queries if self.rescale else None
        return by_query(query, sides, rescaled_to=rescaled_to).clamp(max=min(height, width))


def _stripes(lanes: Lanes) -> Tensor:
    """Vertical stripes of +-eps, of each channel and column its own."""
    _, channels, _, width = lanes.clean.shape
    sign = signs(noise(lanes.seed, (channels, 1, width)), lanes.clean.dtype)
    return (lanes.clean + rows(lanes.eps, lanes.clean) * sign).clamp(0.0, 1.0)


def apart(numbers: Tensor) -> Tensor:
    """The same numbers, none below 0. XLA would work them out again for every pixel that they decide about; it does not
    look through a reduction."""
    if numbers.device.type == "cpu":
        return numbers
    return torch.stack((numbers, torch.zeros_like(numbers))).amax(dim=0)


def by_query(query: Tensor, values: Sequence[int], *, rescaled_to: int | None) -> Tensor:
    """int64 [B]: of `values`, one more than there are HALVINGS, the one in force at `query` [B]."""
    if rescaled_to is not None:
        query = torch.div(query * 10_000, rescaled_to, rounding_mode="floor")
    value = torch.full_like(query, values[0])
    for limit, later in zip(HALVINGS, values[1:], strict=True):
        value = torch.where(query > limit, later, value)
    return value


def span(draw: Tensor, side: Tensor, length: int) -> Tensor:
    """bool [B,length]: `side` places from one that is uniform in [0, length - side), or 0."""
    first = (draw * (length - side).to(draw.dtype)).to(torch.int64)[:, None]
    place = torch.arange(length, device=draw.device)[None, :]
    return (place >= first) & (place < first + side[:, None])


def signs(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(dtype)


def margin_of(logits: Tensor, label: Tensor) -> Tensor:
    """z_y - max_{i != y} z_i."""
    own = logits.gather(1, label[:, None])[:, 0]
    classes = torch.arange(logits.shape[1], device=logits.device)
    return own - torch.where(classes == label[:, None], -torch.inf, logits).amax(dim=1)
