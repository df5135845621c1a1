"""Auto-PGD: projected gradient ascent that chooses its own step size (Croce and Hein 2020, arXiv:2003.01690, Alg. 1).

A pure step over lanes (robust/lanes.py), every lane with its own iterate, step size, window and counters. Step 0
looks at the start, the others are the paper's iterations, so a lane that is never broken costs iterations + 1 forward
and input-only backward passes.

As in the published code, where it differs from the paper or from what one would expect:
- the start lies on the sphere of radius eps (before clipping to the box), not inside the ball;
- the first window finds one increase more where the loss after the first iteration is positive: its predecessor in
  the code's array is a zero;
- after a halving the iterate goes back to the best point, but the momentum's previous point stays;
- a point counts as soon as it is misclassified, whatever class a targeted loss aims at.
Deviations: random numbers come from each question's own stream, so that an answer does not depend on the batch. What is
kept is the first misclassified iterate (the published code: the last); the verdict is the same. A gradient that is not
a number counts as zero, and NaN logits as a misclassification.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust.attack_losses import LOSSES, AttackLoss, LossName
from robust.gradient import Predict, gradient_and_logits
from robust.lanes import Lanes, Passes, alive, choose, misclassified, rows
from robust.noise import noise
from robust.sphere import SPHERES

NAMES: dict[LossName, str] = {
    "ce": "apgd-ce",
    "dlr": "apgd-dlr",
    "dlr-targeted": "apgd-t",
    "margin": "apgd-margin",
    "margin-targeted": "apgd-t-margin",
    "probability-margin": "apgd-pm",
}
MOMENTUM = 0.75
FIRST_WINDOW, WINDOW_DECREASE, LEAST_WINDOW = 0.22, 0.03, 0.06  # shares of the iterations


class Window(NamedTuple):
    """What is counted between two looks at the step size, all [B]."""

    length: Tensor  # int64: iterations
    made: Tensor  # int64: iterations so far
    increases: Tensor  # int64: of the loss, from one iteration to the next
    last_loss: Tensor  # of the iteration before
    best_at_look: Tensor  # the best loss when the step size was last looked at
    was_halved: Tensor  # bool: then


class State(NamedTuple):
    """Where the lanes stand; B is the first axis of everything."""

    lanes: Lanes
    step: Tensor  # int64 [B]
    found: Tensor  # bool [B]
    adversarial: Tensor  # (B,3,H,W)
    image: Tensor  # (B,3,H,W) the iterate, not yet looked at
    previous: Tensor  # (B,3,H,W) the one before it
    best: Tensor  # (B,3,H,W) of the highest loss so far
    best_gradient: Tensor  # (B,3,H,W) there
    best_loss: Tensor  # [B]
    size: Tensor  # [B] step size, pixel units
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Apgd:
    """`iterations` of ascent on `loss`, a name or a function of (logits (N,K), label [N], target [N]) -> [N] in which
    an image's loss depends on its own logits alone; `norm` linf or l2. `eot` gradients are averaged at each point, for
    models whose answers are random (the last answer is what the point is judged by). `suffix` tells two uses of one
    attack in a version apart: by name, and so by random stream."""

    loss: LossName | AttackLoss = "ce"
    norm: Literal["linf", "l2"] = "linf"
    iterations: int = 100
    rho: float = (
        0.75  # the step size stays while more than this share of a window's iterations raised the loss
    )
    eot: int = 1
    suffix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(f"APGD has no loss {self.loss!r}; use {', '.join(LOSSES)}, or a function")
        if self.iterations < 1:
            raise ValueError(f"APGD of {self.iterations} iterations does nothing; use 100, or at least 1")
        if self.eot < 1:
            raise ValueError(f"APGD averages {self.eot} gradients; use 1, or more for a random model")

    @property
    def name(self) -> str:
        name = NAMES[self.loss] if isinstance(self.loss, str) else "apgd-custom"
        return name + self.suffix

    @property
    def steps(self) -> int:
        return self.iterations + 1

    @property
    def passes(self) -> Passes:
        return Passes(forward=self.eot, backward=self.eot)

    def init(self, lanes: Lanes) -> State:
        """A random point of the sphere; no pass of the model."""
        start = SPHERES[self.norm].start(lanes.clean, lanes.eps, lanes.seed, noise)
        zero, none = torch.zeros_like(lanes.eps), torch.zeros_like(lanes.seed)
        lowest = torch.full_like(zero, -torch.inf)
        window = Window(
            length=none + max(int(FIRST_WINDOW * self.iterations), 1),
            made=none.clone(),
            increases=none.clone(),
            last_loss=zero.clone(),
            best_at_look=lowest.clone(),
            was_halved=none == 0,  # so that the first look does not ask for progress since an earlier one
        )
        return State(
            lanes=lanes,
            step=none.clone(),
            found=none != 0,
            adversarial=lanes.clean.clone(),
            image=start,
            previous=start.clone(),
            best=start.clone(),
            best_gradient=torch.zeros_like(start),
            best_loss=lowest,
            size=2.0 * lanes.eps,
            window=window,
        )

    def step(self, predict: Predict, state: State) -> State:
        """A look at the iterate, then the move to the next one."""
        gradient, logits, loss = look(predict, state.image, state.lanes, loss=self.loss, eot=self.eot)
        works = alive(state, self.steps)
        is_wrong = works & misclassified(logits, state.lanes.label)
        state = state._replace(
            adversarial=choose(is_wrong, state.image, state.adversarial),
            found=state.found | is_wrong,
        )
        better = loss > state.best_loss
        state = state._replace(
            best=choose(better, state.image, state.best),
            best_gradient=choose(better, gradient, state.best_gradient),
            best_loss=torch.where(better, loss, state.best_loss),
        )
        state, halved = self._sized(state, loss)
        from_image = choose(halved, state.best, state.image)
        gradient = choose(halved, state.best_gradient, gradient)
        moved = self._moved(state, from_image, gradient)
        return state._replace(image=moved, previous=from_image, step=state.step + works.to(torch.int64))

    def _sized(self, state: State, loss: Tensor) -> tuple[State, Tensor]:
        """The window with this iteration in it, and which lanes halve their step size."""
        w, is_start = state.window, state.step == 0
        made = torch.where(is_start, 0, w.made + 1)
        increases = w.increases + ((loss > w.last_loss) & ~is_start).to(torch.int64)
        is_due = made == w.length
        oscillates = increases <= w.length * self.rho
        stuck = ~w.was_halved & (w.best_at_look >= state.best_loss)
        halved = is_due & (oscillates | stuck)
        shorter = (w.length - max(int(WINDOW_DECREASE * self.iterations), 1)).clamp(
            min=max(int(LEAST_WINDOW * self.iterations), 1)
        )
        window = Window(
            length=torch.where(is_due, shorter, w.length),
            made=torch.where(is_due, 0, made),
            increases=torch.where(is_due, 0, increases),
            last_loss=torch.where(is_start, 0.0, loss),
            best_at_look=torch.where(is_due | is_start, state.best_loss, w.best_at_look),
            was_halved=torch.where(is_due, halved, w.was_halved),
        )
        size = torch.where(halved, state.size / 2.0, state.size)
        return state._replace(window=window, size=size), halved

    def _moved(self, state: State, image: Tensor, gradient: Tensor) -> Tensor:
        sphere = SPHERES[self.norm]
        project = sphere.projection(state.lanes.clean, state.lanes.eps)
        step = project(sphere.ascend(image, gradient, state.size))
        share = rows(torch.where(state.step == 0, 1.0, MOMENTUM).to(image.dtype), image)
        onward = torch.addcmul(image, step - image, share)
        return project(torch.addcmul(onward, image - state.previous, 1.0 - share))


def look(
    predict: Predict, image: Tensor, lanes: Lanes, *, loss: LossName | AttackLoss, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """At `image` (B,3,H,W): the mean of `eot` gradients of the loss (B,3,H,W), 0 where it is no number; the last logits
    (B,K), and the loss there [B]."""
    value_of = LOSSES[loss] if isinstance(loss, str) else loss

    def total(logits: Tensor) -> Tensor:
        return value_of(logits, lanes.label, lanes.target).sum()

    gradient, logits = gradient_and_logits(predict, image, total)
    for _ in range(eot - 1):
        another, logits = gradient_and_logits(predict, image, total)
        gradient = gradient + another
    value = value_of(logits, lanes.label, lanes.target).to(lanes.eps.dtype)
    mean = gradient if eot == 1 else gradient / eot
    return torch.nan_to_num(mean, nan=0.0), logits, value
