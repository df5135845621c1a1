"""`report`: the page, Markdown and CSV of one or more runs, and the same table on the terminal."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bits.checkpoint import write_atomic
from engine.cli import Launch
from engine.report.bars import bar_figures
from engine.report.corruptions import severity_figures
from engine.report.curves import epoch_figures, radius_figure, training_figures
from engine.report.facts import RunFacts
from engine.report.findings import findings
from engine.report.gallery import picture_tables
from engine.report.gather import gather
from engine.report.page import GENERATOR, title_of, to_html, warnings_of
from engine.report.radius import curves
from engine.report.summary import Summary, summarize
from engine.report.tables import (
    FIELDS,
    MARKDOWN_MARK,
    oriented,
    records,
    short,
    to_csv,
    to_markdown,
    to_text,
)

# How a file of ours begins, so that nobody's README.md is replaced by a table.
MARKS = {".html": GENERATOR, ".md": MARKDOWN_MARK, ".csv": ",".join(FIELDS[:3])}

CELL_WIDTH = 31  # of "100.0 % [98.9, 100.0] -12.3 %" and the gap


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Writes page, Markdown and CSV; the numbers, warnings and paths as plain values."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    runs = gather(arguments.runs)
    output = arguments.output or (
        arguments.runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    )
    paths = _targets(output)
    summary = summarize(runs)
    warnings = warnings_of(runs, summary)
    texts = {
        ".html": page(runs, summary),
        ".md": to_markdown(summary, title=title_of(runs), warnings=warnings),
        ".csv": to_csv(summary),
    }
    for suffix, path in paths.items():
        write_atomic(path, texts[suffix].encode())
    _print(summary, warnings, list(paths.values()))
    return {
        "exit_code": 0,
        "output": {suffix[1:]: str(path) for suffix, path in paths.items()},
        "findings": findings(summary),
        "warnings": warnings,
        "runs": [_facts(run) for run in runs],
        "evaluations": records(summary),
    }


def _facts(run: RunFacts) -> dict[str, Any]:
    return {
        "run": run.name,
        "folder": str(run.folder),
        "state": run.progress.state,
        "detail": run.progress.detail,
        "warnings": list(run.warnings),
    }


def page(runs: Sequence[RunFacts], summary: Summary) -> str:
    """The HTML document."""
    radii = [radius_figure(curve, place) for place, curve in enumerate(curves(summary))]
    comparison = [*bar_figures(summary), *severity_figures(summary), *radii]
    training = [*training_figures(summary.rows), *epoch_figures(summary)]
    return to_html(runs, summary, comparison=comparison, training=training, pictures=picture_tables(summary))


def _targets(output: Path) -> dict[str, Path]:
    """Page, Markdown and CSV beside it. ValueError for a place where they cannot or must not be written."""
    if output.suffix != ".html":
        raise ValueError(f"--output {output}: the page's name must end in .html; its tables lie beside it")
    if not output.parent.is_dir():
        raise ValueError(f"--output {output}: {output.parent} is no folder; make it, or give another path")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ValueError(f"report {output}: {output.parent} is not writable; give another path with --output")
    paths = {suffix: output.with_suffix(suffix) for suffix in MARKS}
    for suffix, path in paths.items():
        _check_ours(path, MARKS[suffix])
    return paths


def _check_ours(path: Path, mark: str) -> None:
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"report {path} is there and no file; give another path with --output")
    with path.open(errors="replace") as file:
        if mark not in file.read(1000):
            raise ValueError(f"report {path} is there and was not written by report; give another --output")


def _print(summary: Summary, warnings: Sequence[str], paths: Sequence[Path]) -> None:
    """The table for people: rich on a terminal, aligned text elsewhere."""
    if not summary.columns:
        print("no evaluation can be shown")
    elif sys.stdout.isatty():
        _print_tables(Console(), summary)
    else:
        print(to_text(summary))
    if summary.columns:
        print("accuracy [95 % Wilson interval] and, behind it, the drop relative to clean")
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"written: {', '.join(map(str, paths))}")


def _print_tables(console: Console, summary: Summary) -> None:
    """As many columns side by side as the terminal is wide for; the others below."""
    heads = [f"{c.name}{' (not comparable)' if c.problem else ''}" for c in summary.columns]
    lines = oriented(summary, heads, [[short(cell) for cell in column.cells] for column in summary.columns])
    widest = max(len(line[0]) for line in lines)
    at_once = max(1, (console.width - widest - 2) // CELL_WIDTH)
    for start in range(1, len(lines[0]), at_once):
        console.print(_rich_table([[line[0], *line[start : start + at_once]] for line in lines]))


def _rich_table(lines: Sequence[Sequence[str]]) -> Table:
    """Text objects, for a name may hold what rich would take for markup."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, head in enumerate(lines[0]):
        is_first = place == 0
        table.add_column(
            Text(head), style="bold" if is_first else "", justify="left" if is_first else "right"
        )
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table
