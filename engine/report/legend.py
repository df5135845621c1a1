"""A run's sign beside its name: the colour, marker and dashes that it has in every figure."""

from collections.abc import Iterable

from engine.report.markup import Markup, tag
from engine.report.summary import Row
from engine.report.svg import NUM_COLOURS

# Shapes in a box of 10 x 10 units, in the order of figures.MARKERS.
SHAPES = (
    "M5 1.6a3.4 3.4 0 1 0 .01 0z",
    "M2 2h6v6h-6z",
    "M5 1.2 8.8 8.2H1.2z",
    "M5 .9 9.1 5 5 9.1.9 5z",
    "M5 8.8 8.8 1.8H1.2z",
    "M3.7 1h2.6v2.7H9v2.6H6.3V9H3.7V6.3H1V3.7h2.7z",
    "M2.5 1 5 3.4 7.5 1 9 2.5 6.6 5 9 7.5 7.5 9 5 6.6 2.5 9 1 7.5 3.4 5 1 2.5z",
    "M5 1l3.8 2.8-1.4 4.5H2.6L1.2 3.8z",
)


def sign(row: Row) -> Markup:
    """The run's marker in its colour; decoration, for the name stands beside it."""
    shape = tag("path", d=SHAPES[row.style % len(SHAPES)])
    return tag(
        "svg", shape, class_=f"sign run-{row.style % NUM_COLOURS}", viewBox="0 0 10 10", aria_hidden="true"
    )


def legend(rows: Iterable[Row]) -> Markup:
    return tag("ul", (tag("li", sign(row), row.label) for row in rows), class_="legend")
