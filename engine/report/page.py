"""The page: one HTML file without a script, made of sections in reading order."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.report.appendix import environment_section, identity_section, method_section, recipe_section
from engine.report.bars import NOT_COMPARABLE
from engine.report.beyond import beyond_sections
from engine.report.facts import RunFacts
from engine.report.figures import Figure
from engine.report.findings import findings
from engine.report.gallery import PictureTable
from engine.report.layout import details, scroll, section, table
from engine.report.legend import legend, sign
from engine.report.markup import Markup, tag
from engine.report.pictures import gallery_section
from engine.report.published import published_section
from engine.report.receipt import cost_section
from engine.report.summary import Cell, Column, Row, Summary
from engine.report.words import NOTHING, counts_text, drop_text, interval_text, listed, percent

NOTE = (
    "Accuracy in percent with its 95 % Wilson interval; below it the images that are right of all, and the drop "
    "relative to the same weights on clean images. Of an attack, an image counts only if right before and after it."
)
GENERATOR = "robust-bits report"
STYLE = Path(__file__).with_name("page.css")


def title_of(runs: Sequence[RunFacts]) -> str:
    """What is compared."""
    names = [run.name for run in runs]
    if len(names) == 1:
        return f"Robustness of {names[0]}"
    return f"Robustness of {listed(names)}" if len(names) <= 4 else f"Robustness of {len(names)} runs"


def warnings_of(runs: Sequence[RunFacts], summary: Summary) -> list[str]:
    """Everything that a reader must mind, each with the run or the evaluation it is about."""
    lines = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    lines += [
        f"{column.title} ({column.name}): not comparable between the runs; they differ in {column.problem}"
        for column in summary.columns
        if column.problem
    ]
    return lines


def to_html(
    runs: Sequence[RunFacts],
    summary: Summary,
    *,
    comparison: Sequence[Figure],
    training: Sequence[Figure],
    pictures: Sequence[PictureTable],
) -> str:
    """The whole document; equal arguments give equal text."""
    title = title_of(runs)
    main = tag(
        "main",
        _header(title, runs, summary),
        _warnings(warnings_of(runs, summary)),
        _summary_section(summary),
        published_section(summary),
        _figure_section("Comparison", comparison, "No evaluation can be drawn yet."),
        beyond_sections(summary),
        _figure_section("Training", training, "No training log, so no curves."),
        cost_section(runs),
        gallery_section(pictures, summary),
        environment_section(runs),
        recipe_section(runs),
        identity_section(summary),
        method_section(),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def _header(title: str, runs: Sequence[RunFacts], summary: Summary) -> Markup:
    names = tag("p", listed([run.name for run in runs]), class_="quiet") if len(runs) > 4 else ""
    return tag(
        "header",
        tag("h1", title),
        names,
        tag("ul", (tag("li", line) for line in findings(summary)), class_="findings"),
    )


def _warnings(lines: Sequence[str]) -> Markup:
    if not lines:
        return Markup()
    items = tag("ul", (tag("li", line) for line in lines))
    return tag(
        "aside", tag("h2", "Warnings", id="warnings"), items, class_="warnings", aria_labelledby="warnings"
    )


# ---- summary


def _summary_section(summary: Summary) -> Markup:
    if not summary.columns:
        return section("Summary", tag("p", "No evaluation can be shown."), _bare_rows(summary))
    note = tag("p", NOTE, class_="note")
    return section("Summary", scroll(_summary_table(summary), "Summary table"), note)


def _bare_rows(summary: Summary) -> Markup:
    return tag(
        "ul", (tag("li", sign(row), row.label, " ", _state(row.run)) for row in summary.rows), class_="plain"
    )


def _summary_table(summary: Summary) -> Markup:
    if summary.is_tall:
        head = tag(
            "tr", tag("th", "evaluation", scope="col"), (_row_head(row, "col") for row in summary.rows)
        )
        body = [
            tag("tr", _column_head(column, "row"), (_cell(cell) for cell in column.cells))
            for column in summary.columns
        ]
    else:
        head = tag("tr", tag("th", "run", scope="col"), (_column_head(c, "col") for c in summary.columns))
        body = [
            tag("tr", _row_head(row, "row"), (_cell(column.cells[place]) for column in summary.columns))
            for place, row in enumerate(summary.rows)
        ]
    return tag("table", tag("thead", head), tag("tbody", body), class_="summary")


def _column_head(column: Column, scope: str) -> Markup:
    words = f"{NOT_COMPARABLE} not comparable: {column.problem}"
    problem = tag("span", words, class_="problem") if column.problem else ""
    detail = tag("span", column.detail, class_="detail") if column.detail else ""
    return tag("th", tag("span", column.title, class_="title"), detail, problem, scope=scope)


def _row_head(row: Row, scope: str) -> Markup:
    name = tag("span", sign(row), row.label, class_="title")
    return tag("th", name, tag("span", describe_run(row.run), class_="detail"), _state(row.run), scope=scope)


def describe_run(run: RunFacts) -> str:
    """small_cnn, adversarial, 16 epochs."""
    model, kind, epochs = (run.recipe.get(name) for name in ("model.name", "objective.kind", "run.epochs"))
    parts = [str(model or ""), str(kind or ""), f"{epochs} epochs" if epochs else ""]
    return ", ".join(part for part in parts if part) or "recipe unknown"


def _state(run: RunFacts) -> Markup:
    if run.progress.state == "finished":
        return Markup()
    return tag("span", f"{run.progress.state}: {run.progress.detail}", class_="problem")


def _cell(cell: Cell | None) -> Markup:
    if cell is None:
        return tag("td", tag("span", NOTHING, class_="quiet", title="not measured"))
    share = cell.share
    value = tag(
        "span",
        tag("b", percent(share.value, share.num)),
        " ",
        tag("span", interval_text(share), class_="interval"),
    )
    drop = (
        tag("span", drop_text(cell.drop), class_="drop", title="relative to clean")
        if cell.drop is not None
        else ""
    )
    below = tag("span", tag("span", counts_text(share), class_="counts"), drop, class_="below")
    return tag("td", value, below)


# ---- figures


def _figure_section(heading: str, figures: Iterable[Figure], nothing: str) -> Markup:
    shown = [_figure(figure) for figure in figures]
    content = tag("div", shown, class_="figures") if shown else tag("p", nothing, class_="quiet")
    return section(heading, content)


def _figure(figure: Figure) -> Markup:
    caption = tag("figcaption", figure.title)
    note = tag("p", figure.note, class_="note") if figure.note else ""
    return tag(
        "figure",
        caption,
        legend(figure.rows) if len(figure.rows) > 1 else "",
        figure.svg,
        note,
        _numbers(figure),
        id=figure.name,
    )


def _numbers(figure: Figure) -> Markup:
    if not figure.head:
        return Markup()
    numbers = scroll(table(figure.head, figure.body), f"Numbers of: {figure.title}")
    return details("Numbers", numbers)
