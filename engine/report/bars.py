"""Bars of every evaluation, grouped by evaluation, one for each run."""

from collections.abc import Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from engine.report.facts import Share
from engine.report.figures import MARKERS, WIDTH_IN, Figure, percent_axis
from engine.report.summary import Column, Row, Summary
from engine.report.svg import INK, PAPER, run_colour, themed, to_svg
from engine.report.words import share_text

WIDEST_TICK = 16  # characters
LINE_IN = 0.16  # of a tick
NOT_COMPARABLE = "\u2260"


def bar_figures(summary: Summary) -> list[Figure]:
    """Clean and shifted images in one figure, attacks in another."""
    parts = {
        "Accuracy on clean and shifted images": [c for c in summary.columns if not c.is_attack],
        "Accuracy under attack": [c for c in summary.columns if c.is_attack],
    }
    return [
        _figure(title, columns, summary, i) for i, (title, columns) in enumerate(parts.items()) if columns
    ]


def _figure(title: str, columns: Sequence[Column], summary: Summary, place: int) -> Figure:
    """One bar for each evaluation and row, with the 95 % interval as a whisker."""
    name, num_rows, num_groups = f"bars{place}", len(summary.rows), len(columns)
    pitch, ticks = 0.8 / num_rows, [_tick(column, columns) for column in columns]
    # Room for the bars of a group, or for the longest tick beside them.
    group_in = max(0.2 + 0.19 * num_rows, LINE_IN * max(len(tick.split("\n")) for tick in ticks))
    with themed():
        canvas = Canvas(figsize=(WIDTH_IN, 0.75 + num_groups * group_in), layout="constrained")
        axes = canvas.subplots()
        for number, row in enumerate(summary.rows):
            offset = (number - (num_rows - 1) / 2) * pitch
            cells = [column.cells[number] for column in columns]
            _bars_of(axes, row, [cell.share if cell else None for cell in cells], offset, pitch)
        axes.set_yticks(range(num_groups), ticks)
        axes.set_ylim(num_groups - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        percent_axis(axes, "x", "accuracy (% of images)")
    return Figure(
        name=name,
        title=title,
        svg=to_svg(canvas, name=name, label=f"{title}. {_label(columns, summary)}"),
        rows=summary.rows,
        note="Whiskers are 95 % Wilson intervals. The numbers are those of the table above.",
        head=(),
        body=(),
    )


def _tick(column: Column, others: Sequence[Column]) -> str:
    """Title in short lines; with the settings where another column has the same title."""
    is_shared = sum(other.title == column.title for other in others) > 1
    text = f"{column.title}, {column.detail}" if is_shared else column.title
    lines = [line for part in text.split(", ") for line in wrap(part, WIDEST_TICK)]
    mark = f" {NOT_COMPARABLE}" if column.problem else ""
    return "\n".join(lines).replace("$", r"\$") + mark


def _bars_of(axes: Axes, row: Row, shares: Sequence[Share | None], offset: float, pitch: float) -> None:
    colour, marker = run_colour(row.style), MARKERS[row.style % len(MARKERS)]
    for group, share in enumerate(shares):
        if share is None:
            continue
        value, (low, high) = 100 * share.value, (100 * end for end in share.interval)
        y = group + offset
        axes.barh(y, value, height=pitch * 0.82, color=colour, alpha=0.38, linewidth=0)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.1, solid_capstyle="butt", clip_on=False)
        axes.plot(
            [value],
            [y],
            marker=marker,
            markersize=5,
            color=colour,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            clip_on=False,
        )


def _label(columns: Sequence[Column], summary: Summary) -> str:
    parts = []
    for place, row in enumerate(summary.rows):
        found = [(column.title, column.cells[place]) for column in columns]
        texts = [f"{title} {share_text(cell.share)}" for title, cell in found if cell]
        parts.append(f"{row.label}: {', '.join(texts) or 'nothing'}")
    return f"Bar chart. {'; '.join(parts)}."
