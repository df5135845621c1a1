"""Ledger rows of AutoAttack: what a component did to an image, or that the image could not be read."""

from typing import NamedTuple

from engine.ledger import Verdict
from engine.rows import CLEAN, UNREADABLE
from robust.block import Outcome
from robust.versions import Version


class Member(NamedTuple):
    """An image of a block."""

    position: int
    name: str
    label: int


def bad_row(evaluation: str, member: Member) -> Verdict:
    """Of an image that cannot be read: wrong from the start."""
    return Verdict(
        evaluation=evaluation,
        key=member.name,
        component=CLEAN,
        position=member.position,
        label=member.label,
        prediction=UNREADABLE,
        correct=False,
        top5=False,
        margin=float("nan"),
    )


def row_of(
    evaluation: str, member: Member, outcome: Outcome, version: Version, *, clean_prediction: int
) -> Verdict:
    """`clean_prediction`: the likeliest class of the clean image, also where logits are NaN."""
    is_clean = outcome.component == CLEAN
    is_break = outcome.broken and not is_clean
    return Verdict(
        evaluation=evaluation,
        key=member.name,
        component=outcome.component,
        position=member.position,
        label=member.label,
        # -1 says that an image could not be read
        prediction=clean_prediction if is_clean else outcome.prediction,
        correct=not outcome.broken,
        top5=outcome.rank < 5,
        margin=outcome.margin,
        broken_by=outcome.component if is_break else None,
        step=outcome.steps if is_break else None,
        queries=None if is_clean else _passes(outcome, version),
    )


def _passes(outcome: Outcome, version: Version) -> int:
    """Forward and backward passes that were spent on the image."""
    (component,) = (part.component for part in version.parts if part.name == outcome.component)
    steps = max(0, outcome.tries - 1) * component.steps + outcome.steps
    return round(steps * (component.passes.forward + component.passes.backward))
