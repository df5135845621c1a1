"""What speaks for a cause, found in the rows of a comparison."""

import statistics
from typing import Final

import torch
from torch import Tensor

from engine.parity.comparison import Comparison, Row
from engine.parity.mark import HINT_OTHER_ORDER, HINT_WEIGHT, distance

PARALLEL: Final = 0.9  # cosine
SAME_FACTOR: Final = 1e-3


def begins(all_: Comparison, first: Row) -> Row | None:
    """The first activation that differs, where `first` may come from it."""
    if first.kind not in ("attack logits", "attack gradient", "attacked", "activation"):
        return None
    return next((row for row in all_.of("activation") if not row.holds), None)


def is_other_order(all_: Comparison, first: Row) -> bool:
    """Whether the other side's image is the reference's with mixing and erasing in the other order."""
    hint = all_.hints.get(HINT_OTHER_ORDER)
    return (
        hint is not None
        and first.other is not None
        and distance(hint, first.other).share < first.found.share / 10
    )


def type_change(all_: Comparison, until: Row) -> Row | None:
    """The first row, no later than `until`, that is of another type on the other side."""
    for row in all_.of("attack logits", "activation", "loss"):
        if row.other is not None and row.other.dtype != row.reference.dtype:
            return row
        if row is until:
            return None
    return None


def size_at_flips(all_: Comparison, first: Row) -> float | None:
    """How large the attack's first gradient is where the attacked pixels differ, over its usual size; None where that
    was not seen."""
    flipped = _gap(first).abs() > 0.01 * _gap(first).abs().max()
    gradient = next((row.reference for row in all_.of("attack gradient")), None)
    if gradient is None or gradient.values.shape != flipped.shape or not bool(flipped.any()):
        return None
    size = gradient.values.double().abs()
    usual = float(size.median())
    return float(size[flipped].median()) / usual if usual else None


def all_to_one_side(rows: list[Row]) -> str | None:
    """ "smaller" or "larger", where every value of the other side is; None where they are mixed."""
    gaps = torch.cat([_gap(row).reshape(-1) for row in rows]) if rows else torch.zeros(0)
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return None
    share = float((gaps > 0).double().mean())
    return "larger" if share > 0.98 else "smaller" if share < 0.02 else None


def parallel_to_weights(all_: Comparison) -> float | None:
    """The typical cosine between what updates differ by and the weights; None where they are not parallel."""
    found = []
    for row in all_.of("update"):
        weight = all_.hints.get(HINT_WEIGHT + row.reference.where)
        if weight is not None and not row.holds and row.other is not None:
            found.append(abs(_cosine(row.other.direction - row.reference.direction, weight.direction)))
    cosine = statistics.median(found) if found else 0.0
    return cosine if cosine > PARALLEL else None


def common_factor(all_: Comparison) -> float | None:
    """What all updates of the other side are a multiple of the reference's by; None where they are not."""
    factors = []
    for row in all_.of("update"):
        if row.other is None or not row.reference.norm:
            continue
        here, there = row.reference.direction, row.other.direction
        factor = float(here @ there / (here @ here))
        if float((there - factor * here).norm()) > 1e-2 * float(there.norm()) or factor == 0.0:
            return None
        factors.append(factor)
    if not factors or max(factors) - min(factors) > SAME_FACTOR * abs(max(factors)):
        return None
    return statistics.median(factors)


def _gap(row: Row) -> Tensor:
    assert row.other is not None, "seen on both sides"
    return row.other.values.double() - row.reference.values.double()


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else 0.0
