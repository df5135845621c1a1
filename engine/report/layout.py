"""What every part of the page is laid out with: sections with headings, boxes for wide tables, plain tables."""

from collections.abc import Iterable, Sequence

from engine.report.markup import Child, Markup, tag


def section(heading: str, *children: Child) -> Markup:
    name = heading.lower().replace(" ", "-")
    return tag("section", tag("h2", heading, id=name), *children, aria_labelledby=name)


def scroll(table: Markup, label: str) -> Markup:
    """A box of its own for what may be wider than a phone; it can be reached by keyboard."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(head: Sequence[Child], body: Iterable[Sequence[Child]], *, class_: str | None = None) -> Markup:
    """A table whose first row and first column are headings."""
    top = tag("tr", (tag("th", word, scope="col") for word in head))
    rows = (
        tag("tr", tag("th", first, scope="row"), (tag("td", word) for word in rest)) for first, *rest in body
    )
    return tag("table", tag("thead", top), tag("tbody", rows), class_=class_)


def details(title: str, *children: Child) -> Markup:
    return tag("details", tag("summary", title), *children)
