"""The summary as Markdown, CSV, plain text and JSON; the page's own tables are in page.py, from the same cells."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from engine.report.beyond import parts
from engine.report.facts import Evaluation, Plain
from engine.report.findings import findings
from engine.report.published import HEAD, comparisons
from engine.report.published import NOTE as PUBLISHED_NOTE
from engine.report.receipt import NOTE as COST_NOTE
from engine.report.receipt import cost_lines
from engine.report.summary import Cell, Row, Summary
from engine.report.words import counts_text, drop_text, share_text

MARKDOWN_MARK = "<!-- made by robust-bits report -->"
FIELDS = (
    *("run", "weights", "evaluation", "suite", "subset", "dataset", "contract", "attack", "norm", "eps"),
    *("step_size", "steps", "random_start", "restarts", "best_iterate", "seed", "precision"),
    *("n", "correct", "accuracy", "low", "high", "relative_drop", "comparable"),
    *(
        "ece",
        "ece_debiased",
        "rms_debiased",
        "nll",
        "brier",
        "shape_bias",
        "shape_bias_low",
        "shape_bias_high",
    ),
    *("weights_sha256", "evaluation_id", "result_file"),
)
Record = dict[str, Plain]


def records(summary: Summary) -> list[Record]:
    """One record for each run and evaluation, with exact counts; the fields are FIELDS."""
    return [
        _record(row, cell, column.problem)
        for column in summary.columns
        for row, cell in zip(summary.rows, column.cells, strict=True)
        if cell is not None
    ]


def _record(row: Row, cell: Cell, problem: str) -> Record:
    e = cell.evaluation
    low, high = e.share.interval
    attack = {
        name: e.setting(name) for name in ("attack", "norm", "eps", "step_size", "steps", "random_start")
    }
    return {
        "run": row.run.name,
        "weights": e.weights,
        "evaluation": e.name,
        "suite": e.suite,
        "subset": e.subset,
        "dataset": e.dataset,
        "contract": e.contract,
        **attack,
        "restarts": e.setting("restarts"),
        "best_iterate": e.setting("best_iterate"),
        "seed": e.seed,
        "precision": e.precision,
        "n": e.share.num,
        "correct": e.share.correct,
        "accuracy": e.share.value,
        "low": low,
        "high": high,
        "relative_drop": cell.drop,
        "comparable": problem or "yes",
        **_scores(e),
        "weights_sha256": e.weights_sha256,
        "evaluation_id": e.id,
        "result_file": f"results/{e.file}.json",
    }


def _scores(evaluation: Evaluation) -> Record:
    """Empty where there are none."""
    names = ("ece", "ece_debiased", "rms_debiased", "nll", "brier")
    found, bias = evaluation.calibration, evaluation.shape_bias
    low, high = (bias and bias["interval"]) or (None, None)
    return {
        **{name: None if found is None else found[name] for name in names},  # type: ignore[literal-required]
        **{"shape_bias": bias and bias["value"], "shape_bias_low": low, "shape_bias_high": high},
    }


def to_csv(summary: Summary) -> str:
    """RFC 4180 with a header; floats in full, so that reading gives the same number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(summary))
    return text.getvalue()


def to_markdown(summary: Summary, *, title: str, warnings: Sequence[str]) -> str:
    lines = [MARKDOWN_MARK, "", f"# {_escaped(title)}", ""]
    lines += [f"- {_escaped(sentence)}" for sentence in findings(summary)]
    if warnings:
        lines += ["", "**Warnings**", "", *(f"- {_escaped(warning)}" for warning in warnings)]
    if summary.columns:
        lines += ["", *_markdown_table(summary), "", _escaped(NOTE)]
    if published := comparisons(summary):
        rows = [_line(["---"] * len(HEAD), is_escaped=True), *map(_line, published)]
        lines += ["", "**Published numbers**", "", _line(HEAD), *rows, "", _escaped(PUBLISHED_NOTE)]
    for part in parts(summary):
        rows = [_line(["---"] * len(part.head), is_escaped=True), *map(_line, part.lines)]
        lines += ["", f"**{part.heading}**", "", _line(part.head), *rows, "", _escaped(part.note)]
    if cost := cost_lines([row.run for row in _first_of_run(summary)]):
        rows = [_line(["---"] * len(cost[0]), is_escaped=True), *map(_line, cost[1:])]
        lines += ["", "**Cost**", "", _line(cost[0]), *rows, "", _escaped(COST_NOTE)]
    return "\n".join(lines) + "\n"


def _first_of_run(summary: Summary) -> list[Row]:
    """One row of each run: averaged weights have another."""
    return list({row.run.name: row for row in reversed(summary.rows)}.values())[::-1]


NOTE = (
    "Accuracy in percent [95 % Wilson interval] (images that are right / images); behind it the drop relative to the "
    "same weights on clean images. Of an attack, an image counts as right when it is so before and after it."
)


def _markdown_table(summary: Summary) -> Iterator[str]:
    heads = [f"{c.title} ({c.detail})" if c.detail else c.title for c in summary.columns]
    marked = [
        f"{h} - not comparable: {c.problem}" if c.problem else h
        for h, c in zip(heads, summary.columns, strict=True)
    ]
    body = [[cell_text(cell) for cell in column.cells] for column in summary.columns]
    for number, line in enumerate(oriented(summary, marked, body)):
        yield _line(line)
        if number == 0:
            yield _line(["---"] * len(line), is_escaped=True)


def oriented(summary: Summary, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lines of a table, its head first. `heads` and `cells` are by column of the summary, which is a line where the
    table is tall."""
    labels = [row.label for row in summary.rows]
    if summary.is_tall:
        return [["evaluation", *labels], *([head, *line] for head, line in zip(heads, cells, strict=True))]
    lines = ([label, *(column[place] for column in cells)] for place, label in enumerate(labels))
    return [["run", *heads], *lines]


def _line(cells: Iterable[str], *, is_escaped: bool = False) -> str:
    return f"| {' | '.join(cell if is_escaped else _escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """As Markdown shows it literally; a line break would end the cell."""
    for character in "\\`*|[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def cell_text(cell: Cell | None) -> str:
    """91.1 % [87.7, 93.6] (327/359), -8.1 %."""
    if cell is None:
        return "-"
    drop = f", {drop_text(cell.drop)}" if cell.drop is not None else ""
    return f"{share_text(cell.share)} ({counts_text(cell.share)}){drop}"


def to_text(summary: Summary) -> str:
    """Aligned columns for what is not a terminal."""
    names = [column.name for column in summary.columns]
    table = oriented(summary, names, [[short(cell) for cell in column.cells] for column in summary.columns])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(word.ljust(n) for word, n in zip(line, widths, strict=True)) for line in table]
    return "\n".join(line.rstrip() for line in lines)


def short(cell: Cell | None) -> str:
    """91.1 % [87.7, 93.6] -8.1 %."""
    return "-" if cell is None else f"{share_text(cell.share)} {drop_text(cell.drop)}".rstrip()
