"""One update of two sides, mark by mark in the order of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bits.environment import Precision
from engine.parity.mark import Distance, Kind, Mark, distance
from engine.parity.session import Answer
from engine.parity.tolerance import Tolerance

# Activations localise what an attack's own passes can only show.
PLACES: tuple[tuple[Kind, ...], ...] = (
    ("batch",),
    ("image", "target"),
    ("attack start", "attack logits", "attack gradient", "attacked"),
    ("activation",),
    ("loss",),
    ("gradient",),
    ("clipped",),
    ("statistics",),
    ("update",),
    ("average",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tensor on both sides."""

    reference: Mark
    other: Mark | None  # None: that side has none of this name
    found: Distance
    allowed: float  # length
    holds: bool

    @property
    def kind(self) -> Kind:
        return self.reference.kind

    @property
    def place(self) -> str:
        """In words."""
        mark = self.reference
        if mark.kind == "batch":
            return f"batch ({mark.where})"
        part = f" ({mark.part})" if mark.part else ""
        return (
            f"{mark.kind}{part}"
            if mark.where in ("image", mark.kind)
            else f"{mark.kind} of {mark.where}{part}"
        )

    @property
    def size(self) -> str:
        """How far apart, in words."""
        if self.other is None:
            return "missing on one side"
        if self.kind == "batch":
            return "other values on one side"
        if not math.isfinite(self.found.length):
            return "not finite on one side"
        if self.kind == "attacked":
            return f"{self.found.share:.2%} of the pixels differ, by {self.found.largest:.2g} at most"
        return f"off by {self.found.relative:.2g} (relative L2), by {self.found.largest:.2g} at most"

    def as_dict(self) -> dict[str, Any]:
        mark = self.reference
        dtypes = [mark.dtype, None if self.other is None else self.other.dtype]
        facts = {
            "kind": mark.kind,
            "where": mark.where,
            "part": mark.part,
            "maker": mark.maker,
            "dtypes": dtypes,
        }
        numbers = {
            "relative": self.found.relative,
            "largest": self.found.largest,
            "share": self.found.share,
            "norm": mark.norm,
            "allowed": self.allowed / mark.norm if mark.norm else None,
        }
        plain = {k: v if v is None or math.isfinite(v) else str(v) for k, v in numbers.items()}
        return {**facts, **plain, "holds": self.holds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows of one update, in order."""

    rows: tuple[Row, ...]
    hints: Mapping[str, Mark]  # of the reference
    precisions: tuple[Precision, Precision]
    has_kinks: bool  # the network: ReLU and the like
    answers: tuple[Answer, Answer]

    @property
    def first(self) -> Row | None:
        """The first divergence."""
        return next((row for row in self.rows if not row.holds), None)

    def of(self, *kinds: Kind) -> list[Row]:
        """The rows of these kinds."""
        return [row for row in self.rows if row.kind in kinds]

    def worst(self, *kinds: Kind) -> Row | None:
        """Of these kinds the row that comes nearest to its tolerance, or lies furthest beyond; None without rows."""
        rows = self.of(*kinds)
        return max(rows, key=lambda row: (not row.holds, _strain(row)), default=None)


def _strain(row: Row) -> float:
    if row.found.length == 0:
        return 0.0
    return row.found.length / row.allowed if row.allowed else math.inf


def compare(reference: Answer, other: Answer, precisions: tuple[Precision, Precision]) -> Comparison:
    """`other` against `reference`, by the tolerance of the reference's precision."""
    tolerance = Tolerance(precisions[0], reference.marks)
    theirs = {mark.name: mark for mark in other.marks}
    rows = [_compare_batches(reference, other)]
    for mark in reference.marks:
        if mark.kind == "hint":
            continue
        found = theirs.get(mark.name)
        if found is None and mark.kind == "activation":
            continue  # a tensor that two modules share may be seen behind one or the other
        gap = Distance(math.inf, math.inf, math.inf, 1.0) if found is None else distance(mark, found)
        holds = found is not None and tolerance.holds(mark, found, gap)
        rows.append(Row(reference=mark, other=found, found=gap, allowed=tolerance.allowed(mark), holds=holds))
    order = {kind: place for place, kinds in enumerate(PLACES) for kind in kinds}
    rows.sort(key=lambda row: order[row.kind])  # stable: within a place as they came
    hints = {mark.where: mark for mark in reference.marks if mark.kind == "hint"}
    return Comparison(
        rows=tuple(rows),
        hints=hints,
        precisions=precisions,
        has_kinks=tolerance.has_kinks,
        answers=(reference, other),
    )


def _compare_batches(reference: Answer, other: Answer) -> Row:
    """Equal or not: they are made on the host."""
    wrong = [name for name, digest in reference.batch.items() if other.batch[name] != digest]
    mark = Mark(kind="batch", where=" and ".join(wrong) or "batch", dtype="uint8", count=1, norm=1.0)
    is_equal = not wrong
    gap = Distance(0.0, 0.0, 0.0, 0.0) if is_equal else Distance(1.0, 1.0, 1.0, 1.0)
    return Row(reference=mark, other=mark, found=gap, allowed=0.0, holds=is_equal)
