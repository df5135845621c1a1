"""How much a sample of the survivors leaves unknown: an upper bound on breaks that a cheap search missed."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from robust.versions import Version

HALVINGS = 60


class Audit(NamedTuple):
    """A random sample of the survivors of a cheap search, attacked once more by the dear one."""

    num_images: int  # attacked in all
    survivors: int  # of the cheap search
    audited: int
    broken: int  # of these

    def most_missed(self, confidence: float = 0.95) -> float:
        """Upper bound on the share of survivors that the dear search would have broken, with that confidence."""
        return clopper_pearson(self.broken, self.audited, confidence=confidence)

    def least_robust(self, confidence: float = 0.95) -> float:
        """Share of all images that the dear search would leave at least: those not audited may hide breaks."""
        hidden = (self.survivors - self.audited) * self.most_missed(confidence)
        return max(0.0, self.survivors - self.broken - hidden) / max(1, self.num_images)

    def __str__(self) -> str:
        missed, share = 100 * self.most_missed(), self.least_robust()
        return (
            f"{self.audited} of the {self.survivors} survivors were drawn at random and attacked by all of standard, "
            f"which broke {self.broken}: with 95 % confidence it would break at most {missed:.1f} % of the survivors, "
            f"and leave {100 * share:.1f} % of all images or more"
        )


class Row(NamedTuple):
    """What a component did to an image, as far as an audit asks."""

    image: Hashable
    component: str
    was_tried: bool
    broken: bool


def audit_of(version: Version, rows: Iterable[Row], *, num_images: int) -> Audit | None:
    """The audit in an attack's rows; None where `version` has none, or nothing survived to be audited."""
    parts = [part.name for part in version.parts if part.share < 1.0]
    seen = [row for row in rows if row.component in parts]
    audited = {row.image for row in seen if row.was_tried}
    survivors = {row.image for row in seen if row.component == parts[0]}
    if not survivors:
        return None
    broken = {row.image for row in seen if row.broken}
    return Audit(num_images, len(survivors), len(audited), len(broken))


def clopper_pearson(successes: int, trials: int, *, confidence: float) -> float:
    """One-sided upper bound on the rate behind `successes` of `trials`, exact (Clopper and Pearson 1934): the rate at
    which so few or fewer come with probability 1 - confidence. 1 where nothing was tried."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials; give 0 to {trials}")
    if successes == trials:
        return 1.0
    low, high = successes / trials, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        if _at_most(successes, trials, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(successes: int, trials: int, rate: float) -> float:
    """P(X <= successes), X binomial; 0 < rate < 1."""
    if rate >= 1.0:
        return 0.0
    if rate <= 0.0:
        return 1.0
    down, up = math.log1p(-rate), math.log(rate)
    return sum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * up
            + (trials - k) * down
        )
        for k in range(successes + 1)
    )
