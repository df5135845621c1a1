"""A figure of the page, and what all of them are drawn with: axes in percent, lines and markers of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from engine.report.facts import Share
from engine.report.markup import Markup
from engine.report.summary import Row
from engine.report.svg import PAPER, run_colour

WIDTH_IN = 5.0  # 360 units: what a phone's page is wide
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """An inline SVG and what stands around it."""

    name: str
    title: str
    svg: Markup
    rows: tuple[Row, ...]  # for the legend
    note: str
    head: tuple[str, ...]  # the same numbers as a table
    body: tuple[tuple[str, ...], ...]


def percent_axis(axes: Axes, which: str, label: str) -> None:
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    limits(0, 100)
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(label)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5))


def epoch_axis(axes: Axes) -> None:
    """From 0, in whole epochs where there are several."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axes.get_xlim()[1] >= 2))
    axes.set_xlabel("epochs")


def line_canvas() -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(WIDTH_IN, 3.1), layout="constrained")
    return canvas, canvas.subplots()


def share_line(axes: Axes, row: Row, points: Sequence[tuple[float, Share]], *, is_band: bool) -> None:
    x, colour = [at for at, _ in points], run_colour(row.style)
    low, high = ([100 * share.interval[end] for _, share in points] for end in (0, 1))
    if is_band:
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    else:
        axes.vlines(x, low, high, color=colour, linewidth=1.0)
    run_line(axes, row, x, [100 * share.value for _, share in points], is_marked=True)


def run_line(axes: Axes, row: Row, x: Sequence[float], y: Sequence[float], *, is_marked: bool) -> None:
    dashes = DASHES[row.style % len(DASHES)]
    axes.plot(
        x,
        y,
        color=run_colour(row.style),
        linewidth=1.7,
        linestyle=(0, dashes) if dashes else "-",
        marker=MARKERS[row.style % len(MARKERS)] if is_marked else None,
        markersize=5.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        clip_on=False,
    )
