"""FAB without a target: each iteration goes to the nearest of the label's linearised boundaries with all other classes
(Croce and Hein 2020, arXiv:1907.02044, Alg. 1).

K - 1 gradients an iteration, which nobody can hold at once for many classes: a step asks for `at_once` of them, by one
forward pass and so many backward passes, and keeps the nearest boundary of those seen; the last step of an iteration
moves and looks. So memory is that of one gradient and one forward pass whatever K, and 10 classes need one step an
iteration. Rivals are visited in order of class; of equally near ones the first counts, as in the published code.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robust.fab import length_of, moved
from robust.gradient import Predict, logits_and_gradients
from robust.lanes import Lanes, Norm, Passes, alive, choose, misclassified
from robust.noise import noise
from robust.sphere import STARTS

TINY = 1e-12


class Nearest(NamedTuple):
    """The nearest boundary of those seen in an iteration."""

    distance: Tensor  # [B], of the linearised boundary; infinite before the first
    gap: Tensor  # [B] z_rival - z_y
    gradient: Tensor  # (B,3,H,W) of it


class State(NamedTuple):
    """Where the lanes stand; B is the first axis of everything."""

    lanes: Lanes
    step: Tensor  # int64 [B]
    found: Tensor  # bool [B]
    adversarial: Tensor  # (B,3,H,W)
    image: Tensor  # (B,3,H,W) the iterate
    nearest: Nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class FabUntargeted:
    """`iterations` towards the nearest boundary; with `random_start` from the sphere of radius eps / 2 (the published
    restarts), else from the clean image."""

    num_classes: int
    norm: Norm = "linf"
    iterations: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    random_start: bool = False
    at_once: int = 9  # gradients a step

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"FAB needs a class to go to; {self.num_classes} classes have none, use 2 or more"
            )
        if self.at_once < 1:
            raise ValueError(f"FAB with {self.at_once} gradients a step goes nowhere; use 9, or at least 1")

    @property
    def name(self) -> str:
        return "fab-restarts" if self.random_start else "fab"

    @property
    def steps(self) -> int:
        return self.iterations * self._parts

    @property
    def passes(self) -> Passes:
        return Passes(forward=2, backward=self._gradients)

    @property
    def _gradients(self) -> int:
        """A step, spread evenly."""
        return math.ceil((self.num_classes - 1) / self._parts)

    @property
    def _parts(self) -> int:
        """Steps of an iteration."""
        return math.ceil((self.num_classes - 1) / self.at_once)

    def init(self, lanes: Lanes) -> State:
        none = torch.zeros_like(lanes.seed)
        image = lanes.clean.clone()
        if self.random_start:
            image = STARTS[self.norm](lanes.clean, lanes.eps / 2.0, lanes.seed, noise)
        return State(lanes, none, none != 0, lanes.clean.clone(), image, _none_yet(lanes))

    def step(self, predict: Predict, state: State) -> State:
        """Some more boundaries; behind the last ones the move and the look."""
        lanes, works = state.lanes, alive(state, self.steps)
        nearest = self._looked(predict, state)
        is_last = state.step % self._parts == self._parts - 1
        image = moved(
            state.image,
            lanes.clean,
            nearest.gap,
            nearest.gradient,
            norm=self.norm,
            alpha_max=self.alpha_max,
            eta=self.eta,
        )
        with torch.no_grad():
            is_wrong = misclassified(predict(image), lanes.label)
        change = image - lanes.clean
        is_near = length_of(change.flatten(1), self.norm) <= lanes.eps
        is_hit = works & is_last & is_wrong & is_near
        back = torch.add(lanes.clean, change, alpha=self.beta)
        gone = choose(is_wrong, back, image)
        return State(
            lanes=lanes,
            step=state.step + works.to(torch.int64),
            found=state.found | is_hit,
            adversarial=choose(is_hit, image, state.adversarial),
            image=choose(is_last, gone, state.image),
            nearest=Nearest(
                distance=torch.where(is_last, torch.inf, nearest.distance),
                gap=nearest.gap,
                gradient=nearest.gradient,
            ),
        )

    def _looked(self, predict: Predict, state: State) -> Nearest:
        """The nearest of the boundaries of this step and those seen before it."""
        label, nearest = state.lanes.label, state.nearest
        first = state.step % self._parts * self._gradients
        logits, gradient_of = logits_and_gradients(predict, state.image)
        for number in range(self._gradients):
            # The label's place is left out; what lies behind the last class asks for it once more.
            rival = (first + number).clamp(max=self.num_classes - 2)
            rival = rival + (rival >= label).to(torch.int64)
            pair = torch.stack((rival, label), dim=1)

            def gap_of(logits: Tensor, pair: Tensor = pair) -> Tensor:
                picked = logits.gather(1, pair)
                return picked[:, 0] - picked[:, 1]

            gradient = gradient_of(lambda logits, gap_of=gap_of: gap_of(logits).sum())  # type: ignore[misc]
            gap = gap_of(logits).to(gradient.dtype)
            distance = gap.abs() / (TINY + _dual_length(gradient.flatten(1), self.norm))
            is_nearer = distance < nearest.distance
            nearest = Nearest(
                distance=torch.where(is_nearer, distance, nearest.distance),
                gap=torch.where(is_nearer, gap, nearest.gap),
                gradient=choose(is_nearer, gradient, nearest.gradient),
            )
        return nearest


def _none_yet(lanes: Lanes) -> Nearest:
    return Nearest(
        distance=torch.full_like(lanes.eps, torch.inf),
        gap=torch.zeros_like(lanes.eps),
        gradient=torch.zeros_like(lanes.clean),
    )


def _dual_length(gradient: Tensor, norm: Norm) -> Tensor:
    """What the gap falls by, per unit of a step straight at the boundary, [B] of (B,D)."""
    if norm == "l1":
        return gradient.abs().amax(dim=1)
    return gradient.abs().sum(dim=1) if norm == "linf" else gradient.square().sum(dim=1).sqrt()
