"""Pictures of the report: images as they are and shifted, shared by the runs, and each run's attacked ones.

Tables of strips: a column for each kept image, a strip for each thing that was done to it. Suites keep the images
of the same string keys, so they line up.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.report.facts import Evaluation, Pictures
from engine.report.summary import CLEAN, Column, Row, Summary
from engine.report.words import attack_title, eps_text, suite_title

LARGEST_PX = 96  # a picture's side in the page's file; larger ones are averaged down
MOST_BYTES = 700_000  # of PNG in a page; further columns are left out
Bytes3D = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What one run made of a picture."""

    row: Row
    prediction: str
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    title: str
    note: str
    pictures: tuple[bytes, ...]  # PNG
    marks: tuple[tuple[Mark, ...], ...]  # for each picture those of the rows; none under a perturbation
    row: Row | None  # of an attack: whose


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTable:
    names: tuple[str, ...]
    labels: tuple[str, ...]
    side_px: int  # as stored
    strips: tuple[Strip, ...]
    num_kept: int  # pictures there are; more than names where the page would grow too large


Found = tuple[Row, Evaluation, Pictures]


def picture_tables(summary: Summary) -> list[PictureTable]:
    """A table for each set of images that was kept; strips in the order of the summary's columns."""
    found = list(_found(summary))
    groups = dict.fromkeys((pictures.names, pictures.image.shape[2:]) for _, _, pictures in found)
    tables = []
    for names, shape in groups:
        own = [f for f in found if f[2].names == names and f[2].image.shape[2:] == shape]
        tables.append(_table(own, names))
    share = MOST_BYTES // max(1, len(tables))
    return [_fitting(table, share) for table in tables if table.names]


def _found(summary: Summary) -> Iterator[Found]:
    """Pictures of every suite, and for each norm of the attack that broke most."""
    hardest: dict[str, Column] = {}
    for column in summary.columns:
        example = next(cell.evaluation for cell in column.cells if cell)
        if not column.is_attack:
            yield from _of(column, summary)
        elif any(cell and cell.evaluation.pictures for cell in column.cells):
            best = hardest.get(example.norm)
            hardest[example.norm] = column if best is None or _mean(column) <= _mean(best) else best
    for column in hardest.values():
        yield from _of(column, summary)


def _mean(column: Column) -> float:
    shares = [cell.share.value for cell in column.cells if cell]
    return sum(shares) / len(shares)


def _of(column: Column, summary: Summary) -> Iterator[Found]:
    for row, cell in zip(summary.rows, column.cells, strict=True):
        if cell and cell.evaluation.pictures:
            yield row, cell.evaluation, cell.evaluation.pictures


def _table(found: Sequence[Found], names: tuple[str, ...]) -> PictureTable:
    shown: dict[tuple[str, bytes], Strip] = {}
    attacked: list[Strip] = []
    for row, evaluation, pictures in found:
        _add_shown(shown, row, evaluation, pictures)
        if pictures.attacked is not None:
            attacked += _attacked(row, evaluation, pictures, pictures.attacked)
    row, _, pictures = found[0]
    strips = (*shown.values(), *attacked)
    return PictureTable(
        names=names,
        labels=tuple(_class(row, verdict.label) for verdict in pictures.verdicts),
        side_px=_side(strips),
        strips=strips,
        num_kept=len(names),
    )


def _side(strips: Sequence[Strip]) -> int:
    with Image.open(io.BytesIO(strips[0].pictures[0])) as image:
        return image.width


def _add_shown(
    shown: dict[tuple[str, bytes], Strip], row: Row, evaluation: Evaluation, pictures: Pictures
) -> None:
    """The images before any attack: one strip for all runs that saw the same."""
    key = (evaluation.suite, pictures.image.tobytes())
    component = CLEAN if evaluation.attack else pictures.component
    marks = _marks(row, pictures, component)
    strip = shown.get(key)
    if strip is None:
        pngs = tuple(to_png(image) for image in pictures.image)
        title = suite_title(evaluation.suite)
        shown[key] = Strip(title=title, note="", pictures=pngs, marks=marks, row=None)
    elif all(mark.row.label != row.label for mark in strip.marks[0]):
        both = tuple(old + new for old, new in zip(strip.marks, marks, strict=True))
        shown[key] = replace(strip, marks=both)


def _marks(row: Row, pictures: Pictures, component: str) -> tuple[tuple[Mark, ...], ...]:
    marks: list[tuple[Mark, ...]] = []
    for verdict in pictures.verdicts:
        prediction = verdict.predictions.get(component)
        if prediction is None:
            marks.append(())
            continue
        mark = Mark(row=row, prediction=_class(row, prediction), is_right=prediction == verdict.label)
        marks.append((mark,))
    return tuple(marks)


def _class(row: Row, label: int) -> str:
    classes = row.run.classes
    return classes[label] if 0 <= label < len(classes) else str(label)


def _attacked(
    row: Row, evaluation: Evaluation, pictures: Pictures, attacked: NDArray[np.float32]
) -> list[Strip]:
    """What an attack made of the images, and the difference, magnified."""
    delta = attacked - pictures.image.astype(np.float32) / np.float32(255)
    # In the l-infinity ball every pixel may move by eps: one scale for all runs. Other norms bound no pixel.
    full = evaluation.eps if evaluation.norm == "linf" else float(np.abs(delta).max())
    span = full or 1.0
    pngs = tuple(to_png(image) for image in to_bytes(attacked))
    magnified = tuple(to_png(image) for image in to_bytes((delta / (2 * span) + 0.5).astype(np.float32)))
    reach = eps_text(full, evaluation.norm) if evaluation.norm == "linf" else f"{full:.3g}"
    title, marks = attack_title(evaluation), _marks(row, pictures, pictures.component)
    return [
        Strip(title=title, note="attacked", pictures=pngs, marks=marks, row=row),
        Strip(
            title="perturbation",
            note=f"x {1 / (2 * span):.3g}, range \u00b1{reach}",
            pictures=magnified,
            marks=tuple(() for _ in magnified),
            row=row,
        ),
    ]


def to_bytes(image: NDArray[np.float32]) -> Bytes3D:
    """[0,1] floats as the nearest of 256 levels."""
    levels: Bytes3D = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels


def to_png(image: Bytes3D) -> bytes:
    """uint8 [3,H,W] as PNG; sides above LARGEST_PX are averaged down by a whole factor."""
    is_grey = bool((image == image[:1]).all())
    picture = Image.fromarray(image[0] if is_grey else np.ascontiguousarray(image.transpose(1, 2, 0)))
    factor = -(-max(picture.size) // LARGEST_PX)
    stream = io.BytesIO()
    (picture.reduce(factor) if factor > 1 else picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _fitting(table: PictureTable, most_bytes: int) -> PictureTable:
    """The first columns of `table` that fit, at least one."""
    sizes = [sum(len(strip.pictures[i]) for strip in table.strips) for i in range(len(table.names))]
    num = max(1, sum(1 for i in range(len(sizes)) if sum(sizes[: i + 1]) <= most_bytes))
    strips = tuple(replace(s, pictures=s.pictures[:num], marks=s.marks[:num]) for s in table.strips)
    return replace(table, names=table.names[:num], labels=table.labels[:num], strips=strips)
