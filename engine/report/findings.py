"""The page's first sentences: what the numbers and their intervals bear out, and no more."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.report.facts import Share
from engine.report.summary import CLEAN, Column, Row, Summary
from engine.report.words import drop_text, listed, share_text


class Measured(NamedTuple):
    row: Row
    share: Share


def findings(summary: Summary) -> list[str]:
    """One sentence for each evaluation that matters most: clean, the hardest suite, the hardest attack."""
    columns = _chosen(summary.columns)
    if not columns:
        return [
            "No evaluation of these runs can be shown yet." if len(summary.rows) > 1 else _nothing(summary)
        ]
    return [_sentence(column, summary.rows) for column in columns]


def _nothing(summary: Summary) -> str:
    return f"No evaluation of {summary.rows[0].run.name} can be shown yet."


def _chosen(columns: Sequence[Column]) -> list[Column]:
    clean = [c for c in columns if c.name == CLEAN]
    suites = [c for c in columns if c.name != CLEAN and not c.is_attack]
    attacks = [c for c in columns if c.is_attack]
    return clean[:1] + [min(group, key=_mean) for group in (suites, attacks) if group]


def _mean(column: Column) -> float:
    shares = [cell.share.value for cell in column.cells if cell]
    # A column that more rows have says more.
    return sum(shares) / len(shares) - len(shares)


def _sentence(column: Column, rows: Sequence[Row]) -> str:
    there = [Measured(r, c.share) for r, c in zip(rows, column.cells, strict=True) if c is not None]
    if len(there) == 1:
        return _alone(column, there[0])
    if column.problem:
        return f"{column.title}: not comparable between the runs ({column.problem})."
    absent = f" Measured on {len(there)} of {len(rows)} rows." if len(there) < len(rows) else ""
    return _compared(column, sorted(there, key=lambda m: -m.share.value)) + absent


def _alone(column: Column, measured: Measured) -> str:
    cell = next(cell for cell in column.cells if cell)
    drop = f", {drop_text(cell.drop)} against the clean images" if cell.drop is not None else ""
    what = "right before and after the attack on" if column.is_attack else "right on"
    return (
        f"{column.title}: {measured.row.label} is {what} {share_text(measured.share)} of "
        f"{measured.share.num:,} images{drop}."
    )


def _compared(column: Column, ranked: Sequence[Measured]) -> str:
    best, worst = ranked[0], ranked[-1]
    if not _apart(best, worst):
        return (
            f"{column.title}: the intervals overlap, so this does not tell the runs apart: from "
            f"{_named(worst)} to {_named(best)}."
        )
    if len(ranked) == 2:
        return (
            f"{column.title}: {best.row.label}'s accuracy is higher than {worst.row.label}'s: "
            f"{share_text(best.share)} against {share_text(worst.share)}; the intervals do not overlap."
        )
    return (
        f"{column.title}: highest {_named(best)}{_tied(ranked)}; lowest {_named(worst)}{_tied(ranked[::-1])}."
    )


def _tied(ranked: Sequence[Measured]) -> str:
    """Who cannot be told apart from the first."""
    others = [m.row.label for m in ranked[1:] if not _apart(ranked[0], m)]
    return (
        f", whose interval overlaps with {listed(others)}'s"
        if others
        else ", whose interval overlaps with no other"
    )


def _apart(one: Measured, other: Measured) -> bool:
    (low, high), (from_, to) = one.share.interval, other.share.interval
    return low > to or from_ > high


def _named(measured: Measured) -> str:
    return f"{measured.row.label} {share_text(measured.share)}"
