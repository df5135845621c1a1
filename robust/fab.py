"""FAB: small perturbations by projections on the linearised decision boundary (Croce and Hein 2020, arXiv:1907.02044).

Targeted: the boundary is the one between the label and the target class (AutoAttack's FAB-T); untargeted:
robust/fab_untargeted.py. A pure step over lanes.
The published attack makes all its iterations and keeps the nearest misclassified point; the question here is whether
there is one inside eps, so a lane ends with the first (the verdict is the same). Iterates are those of the published
code, but for the projection (robust/hyperplane.py), which solves the same problem another way.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict, gradient_and_logits
from robust.hyperplane import way
from robust.lanes import Lanes, Norm, Passes, alive, choose, misclassified

LEAST_LENGTH = 1e-8  # of a projection, so that the share below is a number


class State(NamedTuple):
    """Where the lanes stand; B is the first axis of everything."""

    lanes: Lanes
    step: Tensor  # int64 [B]
    found: Tensor  # bool [B]
    adversarial: Tensor  # (B,3,H,W)
    image: Tensor  # (B,3,H,W) the iterate


@dataclass(frozen=True, slots=True, kw_only=True)
class Fab:
    """`iterations` from the clean image towards the boundary with the target class."""

    norm: Norm = "linf"
    iterations: int = 100
    alpha_max: float = 0.1  # the most that the projection of the clean image weighs
    eta: float = 1.05  # overshoot behind the boundary
    beta: float = 0.9  # a misclassified iterate goes back towards the clean image by this factor

    @property
    def name(self) -> str:
        return "fab-t"

    @property
    def steps(self) -> int:
        return self.iterations

    @property
    def passes(self) -> Passes:
        return Passes(forward=2, backward=1)

    def init(self, lanes: Lanes) -> State:
        """Starts at the clean image."""
        none = torch.zeros_like(lanes.seed)
        image = lanes.clean
        return State(lanes, none, none != 0, image.clone(), image.clone())

    def step(self, predict: Predict, state: State) -> State:
        """Onto the linearised boundary and a little behind it, then a look."""
        lanes, works = state.lanes, alive(state, self.steps)
        gap, gradient = self._boundary(predict, state)
        image = moved(
            state.image,
            lanes.clean,
            gap,
            gradient,
            norm=self.norm,
            alpha_max=self.alpha_max,
            eta=self.eta,
        )
        with torch.no_grad():
            is_wrong = misclassified(predict(image), lanes.label)
        change = image - lanes.clean
        is_hit = works & is_wrong & (length_of(change.flatten(1), self.norm) <= lanes.eps)
        back = torch.add(lanes.clean, change, alpha=self.beta)
        return State(
            lanes=lanes,
            step=state.step + works.to(torch.int64),
            found=state.found | is_hit,
            adversarial=choose(is_hit, image, state.adversarial),
            image=choose(is_wrong, back, image),
        )

    def _boundary(self, predict: Predict, state: State) -> tuple[Tensor, Tensor]:
        """z_t - z_y [B] at the iterate, and its gradient (B,3,H,W)."""
        lanes = state.lanes

        def difference(logits: Tensor) -> Tensor:
            picked = logits.gather(1, torch.stack((lanes.target, lanes.label), dim=1))
            return picked[:, 0] - picked[:, 1]

        gradient, logits = gradient_and_logits(predict, state.image, lambda logits: difference(logits).sum())
        return difference(logits).to(gradient.dtype), gradient


def moved(
    image: Tensor,
    clean: Tensor,
    gap: Tensor,
    gradient: Tensor,
    *,
    norm: Norm,
    alpha_max: float,
    eta: float,
) -> Tensor:
    """From `image` (B,3,H,W) a little behind the plane where the linearised `gap` [B] is zero, drawn towards the
    projection of `clean`; `gradient` (B,3,H,W) of the gap at `image`."""
    # A pixel whose gradient is not a number stays where it is.
    flat, centre, normal = image.flatten(1), clean.flatten(1), torch.nan_to_num(gradient.flatten(1), nan=0.0)
    offset = (normal * flat).sum(dim=1) - gap
    from_image, from_clean = (way(point, normal, offset, norm=norm) for point in (flat, centre))
    ours, theirs = (length_of(move, norm).clamp(min=LEAST_LENGTH) for move in (from_image, from_clean))
    share = (ours / (ours + theirs)).clamp(0.0, alpha_max)[:, None]
    ends = torch.add(flat, from_image, alpha=eta), torch.add(centre, from_clean, alpha=eta)
    return torch.lerp(*ends, share).clamp(0.0, 1.0).view_as(image)


def length_of(change: Tensor, norm: Norm) -> Tensor:
    """[B] of (B,D)."""
    if norm == "l1":
        return change.abs().sum(dim=1)
    return change.abs().amax(dim=1) if norm == "linf" else change.square().sum(dim=1).sqrt()
