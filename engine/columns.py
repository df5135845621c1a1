"""Tables for people and for pipes: rich on a terminal, plain aligned text that greps and cuts well elsewhere."""

import sys
from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """A heading; `right` puts the cells, numbers, at the right edge."""

    title: str
    right: bool = False


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()
) -> None:
    """`rows` of as many cells as there are columns, then `notes`. In a pipe nothing depends on a width and nothing
    is cut; columns stand two spaces apart, and notes begin with "# "."""
    if sys.stdout.isatty():
        _print_rich(columns, rows, notes)
        return
    for line in plain_lines(columns, rows):
        print(line)
    for note in notes:
        print(f"# {note}")


def plain_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Heading and rows as aligned text; an empty cell is "-", so that every line has the same number of words
    where cells are single words."""
    lines = [[column.title for column in columns], *([_flat(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    ]


def _flat(cell: str) -> str:
    return " ".join(cell.split()) or "-"


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    # Here, because a pipe does not need it and it takes 60 ms.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        # The first one holds names, which are to be copied; the others may be folded.
        table.add_column(
            column.title, justify="right" if column.right else "left", overflow="fold", no_wrap=place == 0
        )
    for row in rows:
        # As Text: square brackets in a cell are no markup.
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False)
    console.print(table)
    for note in notes:
        console.print(Text(note, style="dim"))
