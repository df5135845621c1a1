"""APGD in l1: sparse steps, and a projection on ball and box together (Croce and Hein 2021, arXiv:2103.01208, Alg. 1).

Against l1 only a few pixels should move, and how few is found on the way: after every window of 4 % of the iterations
the steps become 1.5 times sparser than the best point so far; while that point still loses pixels, the step size is
large and the iterate goes back to it, else the step size shrinks. A pure step over lanes, as in robust/apgd.py: step 0
looks at the start, and there is no momentum.

Deviations: those of robust/apgd.py. Of the published runs the plain one; they can also begin in balls of 3 and 2 times
the radius.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust.apgd import NAMES
from robust.attack_losses import LOSSES, AttackLoss, LossName
from robust.gradient import Predict, gradient_and_logits
from robust.lanes import Lanes, Passes, alive, choose, misclassified, rows
from robust.noise import noise
from robust.threat import normal

WINDOW = 0.04  # share of the iterations
START_SHARE = 0.2  # of the pixels that the first steps move
SPARSER = 1.5  # than the best point
STEADY = 0.95  # of the pixels of the last look: above it the step size shrinks
LEAST_SIZE = 0.1  # of the radius
HALVINGS = 40
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
    """`iterations` of ascent on `loss`, as `Apgd` takes it; `eot` gradients are averaged at each point."""

    loss: LossName | AttackLoss = "ce"
    iterations: int = 100
    eot: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(f"APGD has no loss {self.loss!r}; use {', '.join(LOSSES)}, or a function")
        if self.iterations < 1 or self.eot < 1:
            raise ValueError(
                f"APGD of {self.iterations} iterations and {self.eot} gradients at a point; both are at least 1"
            )

    @property
    def name(self) -> str:
        return NAMES[self.loss] if isinstance(self.loss, str) else "apgd-custom"

    @property
    def norm(self) -> Literal["l1"]:
        return "l1"

    @property
    def steps(self) -> int:
        return self.iterations + 1

    @property
    def passes(self) -> Passes:
        return Passes(forward=self.eot, backward=self.eot)

    def init(self, lanes: Lanes) -> State:
        """Normal noise, projected; no pass of the model."""
        draw = normal(noise(lanes.seed, tuple(lanes.clean.shape[1:]))).to(lanes.clean.dtype)
        start = (lanes.clean + projected(draw, lanes.clean, lanes.eps)).clamp(0.0, 1.0)
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
            size=lanes.eps.clone(),
            share=torch.full_like(lanes.eps, START_SHARE),
            support=torch.full_like(lanes.eps, start[0].numel()),
        )

    def step(self, predict: Predict, state: State) -> State:
        """A look at the iterate, then the move to the next one."""
        gradient, logits, loss = self._look(predict, state)
        works = alive(state, self.steps)
        is_wrong = works & misclassified(logits, state.lanes.label)
        better = loss > state.best_loss
        state = state._replace(
            adversarial=choose(is_wrong, state.image, state.adversarial),
            found=state.found | is_wrong,
            best=choose(better, state.image, state.best),
            best_gradient=choose(better, gradient, state.best_gradient),
            best_loss=torch.where(better, loss, state.best_loss),
        )
        state, goes_back = self._sized(state)
        image = choose(goes_back, state.best, state.image)
        gradient = choose(goes_back, state.best_gradient, gradient)
        return state._replace(image=_moved(state, image, gradient), step=state.step + works.to(torch.int64))

    def _look(self, predict: Predict, state: State) -> tuple[Tensor, Tensor, Tensor]:
        lanes, loss = state.lanes, LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

        def total(logits: Tensor) -> Tensor:
            return loss(logits, lanes.label, lanes.target).sum()

        gradient, logits = gradient_and_logits(predict, state.image, total)
        for _ in range(self.eot - 1):
            another, logits = gradient_and_logits(predict, state.image, total)
            gradient = gradient + another
        value = loss(logits, lanes.label, lanes.target).to(state.best_loss.dtype)
        return torch.nan_to_num(gradient / self.eot, nan=0.0), logits, value

    def _sized(self, state: State) -> tuple[State, Tensor]:
        """At the end of a window: new sparsity, new step size, and which lanes go back to their best point."""
        window = max(int(WINDOW * self.iterations), 1)
        is_due = (state.step > 0) & (state.step % window == 0)
        change = (state.best - state.lanes.clean).abs().flatten(1)
        moved = (change > MOVED).sum(dim=1).to(state.share.dtype)
        goes_back = is_due & (moved < STEADY * state.support)
        largest = state.lanes.eps
        size = torch.where(goes_back, largest, state.size / SPARSER)
        size = torch.minimum(torch.maximum(size, LEAST_SIZE * largest), largest)
        state = state._replace(
            size=torch.where(is_due, size, state.size),
            share=torch.where(is_due, moved / state.image[0].numel() / SPARSER, state.share),
            support=torch.where(is_due, moved, state.support),
        )
        return state, goes_back


def _moved(state: State, image: Tensor, gradient: Tensor) -> Tensor:
    """A step of the state's size along the signs of the largest gradients, projected."""
    clean, size = state.lanes.clean, rows(state.size, image)
    magnitude = gradient.abs().flatten(1)
    count = magnitude.shape[1]
    place = ((1.0 - state.share) * count).clamp(0.0, count - 1).to(torch.int64)
    least = magnitude.sort(dim=1).values.gather(1, place[:, None])[:, 0]
    sparse = torch.where(gradient.abs() >= rows(least, gradient), gradient.sign(), 0.0)
    taken = sparse.abs().flatten(1).sum(dim=1)
    change = image + size * sparse / rows(taken + TINY, image) - clean
    return (clean + projected(change, clean, state.lanes.eps)).clamp(0.0, 1.0)


def projected(change: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    """The change nearest to `change` (B,3,H,W) of l1 length eps [B] or less that keeps clean + change in [0, 1].

    Every pixel's change shrinks by one number, to 0 at most, and ends at its wall; that number is bisected, for the
    length falls with it, and then interpolated: the length is piecewise linear.
    """
    wanted, sign = change.abs().flatten(1), change.sign().flatten(1)
    flat = clean.flatten(1)
    room = torch.where(sign > 0, 1.0 - flat, flat)

    def lengths(shrink: Tensor) -> Tensor:
        return _shrunk(wanted, room, shrink).sum(dim=1)

    near, far = torch.zeros_like(eps), wanted.amax(dim=1)
    for _ in range(HALVINGS):
        middle = (near + far) / 2.0
        is_long = lengths(middle) > eps
        near, far = torch.where(is_long, middle, near), torch.where(is_long, far, middle)
    long, short = lengths(near), lengths(far)
    share = ((long - eps) / (long - short).clamp(min=TINY)).clamp(0.0, 1.0)
    shrink = torch.where(lengths(torch.zeros_like(eps)) > eps, near + share * (far - near), 0.0)
    return (sign * _shrunk(wanted, room, shrink)).view_as(change)


def _shrunk(wanted: Tensor, room: Tensor, shrink: Tensor) -> Tensor:
    return torch.minimum((wanted - shrink[:, None]).clamp(min=0.0), room)
