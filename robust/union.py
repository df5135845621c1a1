"""The worst case that is known: what several attacks on the same images found together."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class BestKnown(NamedTuple):
    """Images that every attack has judged, each robust if none of them broke it."""

    num_images: int
    num_robust: int
    alone: Mapping[str, int]  # images that only this attack broke
    left_out: int  # images that some attack has not judged

    @property
    def accuracy(self) -> float:
        """Best-known robust accuracy: an upper bound, as each attack's own is, and none is lower."""
        return self.num_robust / self.num_images


def best_known(robust: Mapping[str, Mapping[str, bool]]) -> BestKnown:
    """The union of attacks on one model and threat model: attack -> image -> whether it was left robust.

    Sound because a break is a break whoever found it. Only images in all of them count: one that a single weak attack
    has seen would raise the number. ValueError where they have none in common.
    """
    if not robust:
        raise ValueError("no attack's verdicts were given; give at least one")
    common = set.intersection(*(set(verdicts) for verdicts in robust.values()))
    if not common:
        raise ValueError(f"{', '.join(robust)} have no image in common; attack the same ones (--images)")
    breakers = {key: [name for name, verdicts in robust.items() if not verdicts[key]] for key in common}
    return BestKnown(
        num_images=len(common),
        num_robust=sum(not names for names in breakers.values()),
        alone={name: _count(breakers.values(), [name]) for name in robust},
        left_out=len(set.union(*(set(verdicts) for verdicts in robust.values())) - common),
    )


def _count(found: Iterable[list[str]], wanted: list[str]) -> int:
    return sum(names == wanted for names in found)
