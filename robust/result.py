"""What an attack returns to a person: images, verdicts, and what one should know before trusting them."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class AttackResult(NamedTuple):
    """What an attack found, image by image; tensors lie where the images did."""

    adversarial: Tensor  # (N,3,H,W) inside the ball and [0, 1]
    robust: Tensor  # bool [N]: classified correctly before and after the attack
    broken_by: tuple[
        str | None, ...
    ]  # N: the component that broke it, "clean" where it was wrong before, or None
    flags: Mapping[str, Tensor]  # [N] each: clean_correct, zero_gradient (blind at the clean image), and more
    notes: tuple[str, ...] = ()  # one line each: why the verdicts may say less than they seem to
    version: str = ""  # what was run, for a table

    @property
    def robust_accuracy(self) -> float:
        """Share of all N images that are right before and after the attack."""
        return float(self.robust.double().mean())
