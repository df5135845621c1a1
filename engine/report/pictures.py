"""The gallery's HTML: pictures as data URIs, each with what every run made of it, in words and signs."""

from base64 import b64encode
from collections.abc import Sequence

from engine.report.gallery import Mark, PictureTable, Strip
from engine.report.layout import scroll, section
from engine.report.legend import legend, sign
from engine.report.markup import Markup, tag
from engine.report.summary import Summary

SHOWN_PX = 72  # about; a whole multiple of the stored side, so that pixels stay square and sharp


def gallery_section(tables: Sequence[PictureTable], summary: Summary) -> Markup:
    if not tables:
        return section("Gallery", tag("p", "No pictures were kept with these evaluations.", class_="quiet"))
    several = len(summary.rows) > 1
    note = tag(
        "p",
        "Each column is one image; below a picture stands the predicted class: ✓ right, ✗ wrong (framed). ",
        "Of several attacks in one norm the one that broke most is shown. A perturbation is the attacked image minus "
        "the original one, magnified around mid-grey (no change) by the stated factor: black and white are the ends of "
        "the stated range.",
        class_="note",
    )
    signs = legend(summary.rows) if several else ""
    return section("Gallery", signs, (_table(table, several) for table in tables), note)


def _table(table: PictureTable, several: bool) -> Markup:
    head = tag("tr", tag("th", "label", scope="col"), (_label(table, i) for i in range(len(table.names))))
    body = (_strip(strip, table, several) for strip in table.strips)
    whole = tag("table", tag("thead", head), tag("tbody", body), class_="gallery")
    more = table.num_kept - len(table.names)
    rest = (
        tag("p", f"{more} more kept pictures are left out to keep this page small.", class_="note")
        if more
        else ""
    )
    return Markup(scroll(whole, "Gallery") + rest)


def _label(table: PictureTable, place: int) -> Markup:
    name = tag("span", table.names[place], class_="detail", title=table.names[place])
    return tag(
        "th", tag("span", table.labels[place], class_="class", title=table.labels[place]), name, scope="col"
    )


def _strip(strip: Strip, table: PictureTable, several: bool) -> Markup:
    # The perturbation stands right below the attacked images of the same run.
    is_named = strip.row is not None and several and any(strip.marks)
    owner = tag("span", sign(strip.row), strip.row.label, class_="owner") if strip.row and is_named else ""
    note = tag("span", strip.note, class_="detail") if strip.note else ""
    head = tag("th", owner, tag("span", strip.title), note, scope="row")
    cells = (
        tag(
            "td",
            _picture(strip, table, i),
            (_mark(mark, several and strip.row is None) for mark in strip.marks[i]),
        )
        for i in range(len(table.names))
    )
    return tag("tr", head, cells, class_="of-run" if strip.row else "")


def _picture(strip: Strip, table: PictureTable, place: int) -> Markup:
    whose = f" of {strip.row.label}" if strip.row else ""
    width = table.side_px * max(1, SHOWN_PX // table.side_px)
    is_wrong = len(strip.marks[place]) == 1 and not strip.marks[place][0].is_right
    return tag(
        "img",
        src=f"data:image/png;base64,{b64encode(strip.pictures[place]).decode()}",
        alt=f"{strip.title}{whose}, image {table.names[place]}, label {table.labels[place]}",
        width=str(width),
        class_="wrong" if is_wrong else None,
    )


def _mark(mark: Mark, is_signed: bool) -> Markup:
    what = tag(
        "span",
        f"{'✓' if mark.is_right else '✗'} {mark.prediction}",
        class_="right" if mark.is_right else "wrong",
    )
    whose = f"{mark.row.label}: {mark.prediction}, {'right' if mark.is_right else 'wrong'}"
    return tag("span", sign(mark.row) if is_signed else "", what, class_="mark", title=whose)
