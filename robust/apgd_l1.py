"""APGD in l1: sparse steps, and a projection on ball and box together (Croce and Hein 2021, arXiv:2103.01208, Alg. 1).

Against l1 only a few pixels should move, and how few is found on the way: after every window of 4 % of the iterations
the steps become 1.5 times sparser than the best point so far; while that point still loses pixels, the step size is
large and the iterate goes back to it, else the step size shrinks. A pure step over lanes, as in robust/apgd.py: step 0
looks at the start, and there is no momentum.

With `large_first`, as in the published AutoAttack, three such runs follow one another, the first two in larger balls
(robust/l1_runs.py): each starts where the one before it had its highest loss, projected on its own ball. Only what the
last one finds counts.

Deviations: those of robust/apgd.py; a change below 1e-7 is rounding and not a moved pixel.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust.apgd import NAMES, look
from robust.attack_losses import LOSSES, AttackLoss, LossName
from robust.gradient import Predict
from robust.l1_ball import projected
from robust.l1_runs import Place, Run, place_of, runs_of
from robust.lanes import Lanes, Passes, alive, choose, misclassified, rows
from robust.noise import noise
from robust.threat import normal

START_SHARE = 0.2  # of the pixels that the first steps move
SPARSER = 1.5  # than the best point
STEADY = 0.95  # of the pixels of the last look: above it the step size shrinks
LEAST_SIZE = 0.1  # of the radius
MOVED = 1e-7  # a smaller change is rounding
TINY = 1e-10


class State(NamedTuple):
    """Where the lanes stand; B is the first axis of everything."""

    lanes: Lanes
    step: Tensor  # int64 [B]
    found: Tensor  # bool [B]
    adversarial: Tensor  # (B,3,H,W)
    image: Tensor  # (B,3,H,W) the iterate, not yet looked at
    best: Tensor  # (B,3,H,W) of the highest loss so far
    best_gradient: Tensor  # (B,3,H,W) there
    best_loss: Tensor  # [B]
    size: Tensor  # [B] l1 length of a step
    share: Tensor  # [B] of the pixels that a step moves
    support: Tensor  # [B] pixels in which the best point differed from the clean one at the last look


@dataclass(frozen=True, slots=True, kw_only=True)
class ApgdL1:
    """`iterations` of ascent on `loss`, as `Apgd` takes it; `eot` gradients are averaged at each point. `large_first`:
    in larger balls at first. `suffix` as for `Apgd`."""

    loss: LossName | AttackLoss = "ce"
    iterations: int = 100
    eot: int = 1
    large_first: bool = False
    suffix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(f"APGD has no loss {self.loss!r}; use {', '.join(LOSSES)}, or a function")
        if self.iterations < 1 or self.eot < 1:
            raise ValueError(
                f"APGD of {self.iterations} iterations and {self.eot} gradients at a point; both are at least 1"
            )
        if self.runs[-1].iterations < 1:
            raise ValueError(
                f"{self.iterations} iterations leave none for the radius itself behind those in larger balls; use 5 "
                "or more, or large_first=False"
            )

    @property
    def name(self) -> str:
        name = NAMES[self.loss] if isinstance(self.loss, str) else "apgd-custom"
        return name + self.suffix

    @property
    def norm(self) -> Literal["l1"]:
        return "l1"

    @property
    def runs(self) -> tuple[Run, ...]:
        return runs_of(self.iterations, large_first=self.large_first)

    @property
    def steps(self) -> int:
        return self.iterations + len(self.runs)

    @property
    def passes(self) -> Passes:
        return Passes(forward=self.eot, backward=self.eot)

    def init(self, lanes: Lanes) -> State:
        """Normal noise, projected; no pass of the model."""
        radius = self.runs[0].radius * lanes.eps
        draw = normal(noise(lanes.seed, tuple(lanes.clean.shape[1:]))).to(lanes.clean.dtype)
        start = (lanes.clean + projected(draw, lanes.clean, radius)).clamp(0.0, 1.0)
        none = torch.zeros_like(lanes.seed)
        return State(
            lanes=lanes,
            step=none,
            found=none != 0,
            adversarial=lanes.clean.clone(),
            image=start,
            best=start.clone(),
            best_gradient=torch.zeros_like(start),
            best_loss=torch.full_like(lanes.eps, -torch.inf),
            size=radius,
            **self._first_support(start, lanes),
        )

    def _first_support(self, start: Tensor, lanes: Lanes) -> dict[str, Tensor]:
        """`share` and `support` at the first start: those of a point that is known, or what noise is given."""
        count = start[0].numel()
        if self.large_first:
            support = _moved_pixels(start, lanes.clean)
            return {"share": support / count / SPARSER, "support": support}
        return {
            "share": torch.full_like(lanes.eps, START_SHARE),
            "support": torch.full_like(lanes.eps, count),
        }

    def step(self, predict: Predict, state: State) -> State:
        """A look at the iterate, then the move to the next one, or to the start of the next run."""
        gradient, logits, loss = look(predict, state.image, state.lanes, loss=self.loss, eot=self.eot)
        place, works = place_of(self.runs, state.step, state.lanes.eps), alive(state, self.steps)
        is_wrong = works & place.is_last & misclassified(logits, state.lanes.label)
        better = loss > state.best_loss
        state = state._replace(
            adversarial=choose(is_wrong, state.image, state.adversarial),
            found=state.found | is_wrong,
            best=choose(better, state.image, state.best),
            best_gradient=choose(better, gradient, state.best_gradient),
            best_loss=torch.where(better, loss, state.best_loss),
        )
        state, goes_back = self._sized(state, place)
        image = choose(goes_back, state.best, state.image)
        gradient = choose(goes_back, state.best_gradient, gradient)
        wanted = choose(place.is_end, state.best, _ascended(state, image, gradient))
        clean = state.lanes.clean
        image = (clean + projected(wanted - clean, clean, place.next_radius)).clamp(0.0, 1.0)
        if self.large_first:
            state = _restarted(state, image, place)
        return state._replace(image=image, step=state.step + works.to(torch.int64))

    def _sized(self, state: State, place: Place) -> tuple[State, Tensor]:
        """At the end of a window: new sparsity, new step size, and which lanes go back to their best point."""
        is_due = (place.step > 0) & (place.step % place.window == 0)
        moved = _moved_pixels(state.best, state.lanes.clean)
        goes_back = is_due & (moved < STEADY * state.support)
        size = torch.where(goes_back, place.radius, state.size / SPARSER)
        size = torch.minimum(torch.maximum(size, LEAST_SIZE * place.radius), place.radius)
        state = state._replace(
            size=torch.where(is_due, size, state.size),
            share=torch.where(is_due, moved / state.image[0].numel() / SPARSER, state.share),
            support=torch.where(is_due, moved, state.support),
        )
        return state, goes_back


def _restarted(state: State, start: Tensor, place: Place) -> State:
    """Where a run has ended: what the next one begins with, at its `start`."""
    support = _moved_pixels(start, state.lanes.clean)
    return state._replace(
        best=choose(place.is_end, start, state.best),
        best_loss=torch.where(place.is_end, -torch.inf, state.best_loss),
        size=torch.where(place.is_end, place.next_radius, state.size),
        share=torch.where(place.is_end, support / start[0].numel() / SPARSER, state.share),
        support=torch.where(place.is_end, support, state.support),
    )


def _moved_pixels(image: Tensor, clean: Tensor) -> Tensor:
    """How many numbers of each image differ from the clean one, [B] of the image's dtype."""
    return ((image - clean).abs().flatten(1) > MOVED).sum(dim=1).to(image.dtype)


def _ascended(state: State, image: Tensor, gradient: Tensor) -> Tensor:
    """A step of the state's size along the signs of the largest gradients, not projected."""
    magnitude = gradient.abs().flatten(1)
    count = magnitude.shape[1]
    place = ((1.0 - state.share) * count).clamp(0.0, count - 1).to(torch.int64)
    least = magnitude.sort(dim=1).values.gather(1, place[:, None])[:, 0]
    sparse = torch.where(gradient.abs() >= rows(least, gradient), gradient.sign(), 0.0)
    taken = sparse.abs().flatten(1).sum(dim=1)
    return image + rows(state.size, image) * sparse / rows(taken + TINY, image)
