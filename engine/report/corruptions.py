"""Sets with parts, such as ImageNet-C: mean error, mCE, groups, severities and kinds together, and the curve."""

from collections.abc import Iterator, Sequence

from data.suite import Suite
from data.suite_folders import manifest_of
from engine.report.facts import Evaluation
from engine.report.figures import Figure, line_canvas, percent_axis, run_line
from engine.report.summary import Column, Row, Summary
from engine.report.svg import themed, to_svg
from engine.report.words import NOTHING, suite_title

HEAD = ("run", "images", "mean error/%", "mCE", "by group/%", "at severity 1, 2, ... /%")
NOTE = (
    "Mean error: over severities, then over kinds, not normalised. mCE: each kind's error over AlexNet's first, 100 is "
    "AlexNet. They are two numbers, and neither compares with the other. Lower is better. No mean where parts are "
    "missing."
)
KINDS_NOTE = "Error in per cent at each severity, and their mean."


def lines(summary: Summary) -> Iterator[tuple[str, ...]]:
    """A line for each run and set."""
    for row, evaluation in _with_errors(summary):
        suite, errors = manifest_of(evaluation.suite), evaluation.errors
        whole = is_whole(suite, evaluation)
        yield (
            row.label,
            suite_title(evaluation.suite),
            f"{100 * _mean([_mean(own) for own in errors.values()]):.2f}" if whole else NOTHING,
            NOTHING if evaluation.mce is None or not whole else f"{evaluation.mce:.2f}",
            ", ".join(_groups(suite, evaluation)) if whole and len(suite.parts) > 1 else NOTHING,
            "  ".join(f"{100 * value:.1f}" for value in _severities(evaluation)) if whole else NOTHING,
        )


def kind_lines(summary: Summary) -> Iterator[tuple[str, ...]]:
    """A line for each kind, run and set."""
    for row, evaluation in _with_errors(summary):
        for kind, own in evaluation.errors.items():
            values = "  ".join(f"{100 * value:.1f}" for value in own)
            yield row.label, suite_title(evaluation.suite), kind, values, f"{100 * _mean(own):.1f}"


def is_whole(suite: Suite, evaluation: Evaluation) -> bool:
    """Whether every part of the set was judged; of somebody's own set nobody knows, so those that are there count."""
    counts = {len(own) for own in evaluation.errors.values()}
    return len(counts) == 1 and (not suite.kinds or set(suite.kinds) <= {*evaluation.errors, "*"})


def severity_figures(summary: Summary) -> list[Figure]:
    """The mean error against severity, one figure for each set, one line for each run."""
    return [
        _figure(column, summary.rows, place)
        for place, column in enumerate(summary.columns)
        if _is_drawn(column)
    ]


def _is_drawn(column: Column) -> bool:
    found = [cell.evaluation for cell in column.cells if cell is not None and cell.evaluation.errors]
    return not column.problem and any(len(_severities(e)) > 1 for e in found)


def _figure(column: Column, rows: Sequence[Row], place: int) -> Figure:
    drawn = [
        (row, _severities(cell.evaluation))
        for row, cell in zip(rows, column.cells, strict=True)
        if cell is not None and cell.evaluation.errors
    ]
    longest = max(len(values) for _, values in drawn)
    levels = list(range(1, longest + 1))
    name, title = f"severity{place}", f"Error against severity, {column.title}"
    with themed():
        canvas, axes = line_canvas()
        for row, values in drawn:
            run_line(axes, row, levels[: len(values)], [100 * value for value in values], is_marked=True)
        axes.set_xticks(levels)
        axes.set_xlabel("severity")
        percent_axis(axes, "y", "mean error (%)")
    texts = [f"{row.label}: {', '.join(f'{100 * v:.1f} %' for v in values)}" for row, values in drawn]
    return Figure(
        name=name,
        title=title,
        svg=to_svg(canvas, name=name, label=f"{title}. {'; '.join(texts)}."),
        rows=tuple(row for row, _ in drawn),
        note="The mean over the set's kinds of corruption.",
        head=("severity", *(row.label for row, _ in drawn)),
        body=tuple(
            (str(level), *(f"{100 * v[level - 1]:.1f}" if level <= len(v) else NOTHING for _, v in drawn))
            for level in levels
        ),
    )


def _with_errors(summary: Summary) -> Iterator[tuple[Row, Evaluation]]:
    for column in summary.columns:
        for row, cell in zip(summary.rows, column.cells, strict=True):
            if cell is not None and cell.evaluation.errors:
                yield row, cell.evaluation


def _severities(evaluation: Evaluation) -> list[float]:
    """Means over kinds, as far as all kinds have the severity."""
    return [_mean(values) for values in zip(*evaluation.errors.values(), strict=False)]


def _groups(suite: Suite, evaluation: Evaluation) -> Iterator[str]:
    for group, kinds in suite.parts.items():
        yield f"{group} {100 * _mean([_mean(evaluation.errors[kind]) for kind in kinds]):.1f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
