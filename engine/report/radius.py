"""Robust accuracy against the radius: which evaluations make one curve, and which do not belong on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.report.facts import Evaluation, Plain, Share
from engine.report.summary import Row, Summary
from engine.report.words import eps_text

_RELATIVE = 1e-6  # two step sizes, or two ratios of them, are the same up to rounding
Key = tuple[Plain, ...]
Member = tuple[Row, Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row's points (eps, share) by rising eps; the first is eps 0, the images before the attack."""

    row: Row
    points: tuple[tuple[float, Share], ...]
    ids: tuple[str, ...]  # of the evaluations at eps > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Evaluations that share everything but the radius (and a step size in proportion to it)."""

    example: Evaluation  # any of them: its settings but eps are those of all
    step_text: str  # "0.25 eps" or "2/255"
    lines: tuple[Line, ...]
    left_out: tuple[str, ...]  # attacks of the same norm that differ in more


def curves(summary: Summary) -> list[Curve]:
    """One curve for each norm and kind of attack that was made at two radii or more."""
    found: dict[Key, list[Member]] = {}
    attacks = [
        (row, cell.evaluation)
        for column in summary.columns
        for row, cell in zip(summary.rows, column.cells, strict=True)
        if cell and cell.evaluation.attack
    ]
    for row, evaluation in attacks:
        found.setdefault(_kind(evaluation), []).append((row, evaluation))
    made = [curve for key in found if (curve := _curve(found[key], attacks)) is not None]
    return sorted(made, key=lambda c: (c.example.norm, str(_kind(c.example))))


def _kind(e: Evaluation) -> Key:
    settings = tuple((name, value) for name, value in e.attack if name not in ("eps", "step_size"))
    flat = tuple(part for pair in settings for part in pair)
    return (e.suite, e.subset, e.dataset, e.contract, e.precision, *flat)


def _curve(members: Sequence[Member], attacks: Iterable[Member]) -> Curve | None:
    chosen, step_text = _same_steps(members)
    labels = dict.fromkeys(row.label for row, _ in chosen)
    lines = tuple(_line([member for member in chosen if member[0].label == label]) for label in labels)
    lines = tuple(sorted(lines, key=lambda line: line.row.style))
    if len({eps for line in lines for eps, _ in line.points}) < 3:  # eps 0 and two radii
        return None
    example = chosen[0][1]
    drawn = {id_ for line in lines for id_ in line.ids}
    others: dict[str, list[str]] = {}
    for row, e in attacks:
        if e.norm == example.norm and e.id not in drawn:
            others.setdefault(e.file, []).append(row.label)
    left_out = [f"{file} ({', '.join(owners)})" for file, owners in others.items()]
    return Curve(example=example, step_text=step_text, lines=lines, left_out=tuple(left_out))


def _same_steps(members: Sequence[Member]) -> tuple[list[Member], str]:
    """The largest part of `members` whose step size is the same share of eps, or the same number."""
    choices: list[tuple[list[Member], str]] = []
    for _, e in members:
        ratio = e.step_size / e.eps if e.eps else 0.0
        relative = [m for m in members if _close(m[1].step_size, ratio * m[1].eps)]
        choices.append((relative, f"{ratio:.3g} eps"))
        absolute = [m for m in members if _close(m[1].step_size, e.step_size)]
        choices.append((absolute, eps_text(e.step_size, e.norm)))
    return max(choices, key=lambda choice: len(choice[0]))


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= _RELATIVE * max(abs(one), abs(other))


def _line(own: Sequence[Member]) -> Line:
    """The points of one row that are about one set of weights and one seed; of several the largest part."""
    kinds = dict.fromkeys((e.weights_sha256, e.seed) for _, e in own)
    parts = [[e for _, e in own if (e.weights_sha256, e.seed) == kind] for kind in kinds]
    largest = max(parts, key=len)
    points = {0.0: largest[0].before} | {e.eps: e.share for e in largest}
    return Line(row=own[0][0], points=tuple(sorted(points.items())), ids=tuple(e.id for e in largest))
