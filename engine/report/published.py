"""The numbers that a recipe says were published, beside those of the run."""

from collections.abc import Iterator

from data.suite import suites_called
from engine.protocols import list_protocols
from engine.report.facts import Share
from engine.report.layout import scroll, section, table
from engine.report.markup import Markup, tag
from engine.report.summary import Summary
from engine.report.words import MINUS, NOTHING, percent, share_text

HEAD = ("run", "measure", "published/%", "here", "difference")
NOTE = (
    "What the recipe names as published, in percent. A measure whose name ends in -error is better when lower. An "
    "evaluation of that name, or of the suite it stands for, is compared as it stands; other images, protocols or "
    "settings make other numbers."
)
_PREFIX, _ERROR = "published.", "-error"


def comparisons(summary: Summary) -> list[tuple[str, ...]]:
    """A line for each run and published number, the cells of HEAD: the run's own where an evaluation has its name."""
    return [line for place, _ in enumerate(summary.rows) for line in _of_row(summary, place)]


def _of_row(summary: Summary, place: int) -> Iterator[tuple[str, ...]]:
    row = summary.rows[place]
    published = {k.removeprefix(_PREFIX): v for k, v in row.run.recipe.items() if k.startswith(_PREFIX)}
    for name, value in published.items():
        share = _own(summary, place, name)
        here = NOTHING if share is None else share_text(share)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        difference = NOTHING
        if share is not None and is_number:
            points = float(percent(share.value, share.num)) - float(str(value))
            difference = f"{points:+.2f} points".replace("-", MINUS)
        yield row.label, name, f"{value}", here, difference


def _own(summary: Summary, place: int, name: str) -> Share | None:
    """The run's share of that name, of the suite that it is another name of (imagenet-a: a), or of that suite under a
    protocol; imagenet-c-error is what is wrong of c."""
    called = suites_called(name.removesuffix(_ERROR))[:1]
    names = [
        name,
        *(f"{id}{ending}" for id in called for ending in ("", *(f"-{p}" for p in list_protocols()))),
    ]
    for column in summary.columns:
        cell = column.cells[place] if column.name in names else None
        if cell is not None:
            is_error = name.endswith(_ERROR) and column.name != name
            return _wrong(cell.share) if is_error else cell.share
    return None


def _wrong(share: Share) -> Share:
    low, high = share.interval
    return Share(share.num - share.correct, share.num, (1 - high, 1 - low))


def published_section(summary: Summary) -> Markup:
    """Nothing, where no recipe names a published number."""
    lines = comparisons(summary)
    if not lines:
        return Markup()
    note = tag("p", NOTE, class_="note")
    return section("Published numbers", scroll(table(HEAD, lines), "Published numbers"), note)
