"""The ledger: one row per image, component and evaluation; written by many processes, merged when it is read.

Accuracies are sums over these rows: an interrupted evaluation goes on where it stopped, every number can be
traced to images. Each process writes a file of its own, rank-R.sqlite; engine/ledger_file.py says how.
"""

import json
import math
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.ledger_file import (
    SCHEMA,
    LedgerConflict,
    LedgerWriter,
    Verdict,
    columns,
    conflict,
    has_tables,
    one_line_errors,
)
from engine.metrics.calibration import NUM_BINS, Bin, Scores
from engine.metrics.intervals import wilson_interval

__all__ = [
    "Counts",
    "Ledger",
    "LedgerConflict",
    "LedgerWriter",
    "Summary",
    "Verdict",
    "read_ledger",
    "wilson_interval",
]

_NUMBERS = ("margin", "confidence", "nll", "brier")
DIFFERS = " OR ".join(f"a.{name} != b.{name}" for name in ("position", "label", "prediction", "correct"))


class Counts(TypedDict):
    """Images and how many of them count: exact integers, and their ratios."""

    num_images: int
    num_correct: int
    num_top5: int
    top1: float
    top5: float


class Summary(Counts):
    """An evaluation: the worst case per image over its components, and every component by itself."""

    num_rows: int
    components: dict[str, Counts]


class Ledger:
    """What all files of a folder said when they were read; see read_ledger."""

    def __init__(self, folder: str | Path, evaluation_id: str | None = None) -> None:
        self.folder = Path(folder)
        self._db = sqlite3.connect("file::memory:", uri=True, isolation_level=None, check_same_thread=False)
        self.close = weakref.finalize(self, self._db.close)
        for statement in SCHEMA:
            self._db.execute(statement)
        for path in sorted(self.folder.glob("rank-*.sqlite")):
            with one_line_errors(path):
                _merge(self._db, path, evaluation_id)

    def evaluations(self) -> dict[str, dict[str, object]]:
        """What each described evaluation id stands for."""
        return {
            id_: json.loads(text) for id_, text in self._db.execute("SELECT * FROM evaluation ORDER BY id")
        }

    def done(self, evaluation_id: str, component: str) -> NDArray[np.int64]:
        """Sorted positions that have a verdict."""
        query = "SELECT position FROM verdict WHERE evaluation = ? AND component = ? ORDER BY position"
        return np.array(
            [row[0] for row in self._db.execute(query, (evaluation_id, component))], dtype=np.int64
        )

    def right(self, evaluation_id: str, component: str) -> NDArray[np.int64]:
        """Sorted positions whose verdict is right."""
        query = "SELECT position FROM verdict WHERE evaluation = ? AND component = ? AND correct ORDER BY position"
        found = self._db.execute(query, (evaluation_id, component))
        return np.array([row[0] for row in found], dtype=np.int64)

    def effort(self, evaluation_id: str) -> dict[str, tuple[int, int]]:
        """Of each component: images that it broke, and what it asked of the model (the sum of `queries`)."""
        query = (
            "SELECT component, COUNT(broken_by), SUM(COALESCE(queries, 0)) FROM verdict WHERE evaluation = ?"
        )
        found = self._db.execute(f"{query} GROUP BY component", (evaluation_id,))
        return {component: (broken, queries) for component, broken, queries in found}

    def keys(self, evaluation_id: str, component: str) -> list[str]:
        """Names of the images that have a verdict."""
        query = "SELECT key FROM verdict WHERE evaluation = ? AND component = ?"
        return [row[0] for row in self._db.execute(query, (evaluation_id, component))]

    def count_predicted(self, evaluation_id: str, component: str, prediction: int) -> int:
        """Images whose verdict is that class."""
        query = "SELECT COUNT(*) FROM verdict WHERE evaluation = ? AND component = ? AND prediction = ?"
        (count,) = self._db.execute(query, (evaluation_id, component, prediction)).fetchone()
        return int(count)

    def predictions(self, evaluation_id: str, component: str) -> Iterator[tuple[str, int, int]]:
        """(key, label, predicted class) of every image, by key."""
        query = (
            "SELECT key, label, prediction FROM verdict WHERE evaluation = ? AND component = ? ORDER BY key"
        )
        yield from self._db.execute(query, (evaluation_id, component))

    def correct(self, evaluation_id: str, component: str) -> tuple[list[str], NDArray[np.bool_]]:
        """Keys of all images, sorted, and whether each is right."""
        query = "SELECT key, correct FROM verdict WHERE evaluation = ? AND component = ? ORDER BY key"
        found = self._db.execute(query, (evaluation_id, component)).fetchall()
        return [key for key, _ in found], np.array([right for _, right in found], dtype=np.bool_)

    def scores(self, evaluation_id: str, component: str) -> Scores:
        """Sums over the rows that have scores; images that could not be read have none."""
        rows = "FROM verdict WHERE evaluation = ? AND component = ? AND brier IS NOT NULL"
        which = (evaluation_id, component)
        num, nll, nll_squares, brier, brier_squares = self._db.execute(
            f"SELECT COUNT(*), TOTAL(nll), TOTAL(nll * nll), TOTAL(brier), TOTAL(brier * brier) {rows}", which
        ).fetchone()
        place = f"MIN(CAST(confidence * {NUM_BINS} AS INT), {NUM_BINS - 1})"
        bins = f"SELECT COUNT(*), SUM(correct), SUM(confidence) {rows} GROUP BY {place} ORDER BY {place}"
        found = tuple(Bin(*row) for row in self._db.execute(bins, which))
        return Scores(num, nll, nll_squares, brier, brier_squares, found)

    def rows(self, evaluation_id: str, component: str | None = None) -> Iterator[Verdict]:
        """The verdicts of one component or of all, by component and position."""
        query = "SELECT * FROM verdict WHERE evaluation = ? AND ? IN (component, '') "
        order = "ORDER BY component, position, key"
        for row in self._db.execute(query + order, (evaluation_id, component or "")):
            yield _from_row(row)

    def summary(self, evaluation_id: str) -> Summary:
        """Exact counts. An image counts as correct when all of its rows are: with one component these are
        plain sums, with several attacks num_correct and top1 are the worst case, the robust accuracy."""
        sums = "SELECT component, COUNT(*), SUM(correct), SUM(top5) FROM verdict"
        query = f"{sums} WHERE evaluation = ? GROUP BY component ORDER BY component"
        parts = {name: _counts(*counts) for name, *counts in self._db.execute(query, (evaluation_id,))}
        if not parts:
            known = self._db.execute("SELECT DISTINCT evaluation FROM verdict").fetchall()
            names = ", ".join(name for (name,) in known) or "none"
            raise ValueError(f"{self.folder} has no verdict of evaluation {evaluation_id}; it has: {names}")
        worst = "SELECT MIN(correct) AS c, MIN(top5) AS t FROM verdict WHERE evaluation = ? GROUP BY key"
        total = self._db.execute(
            f"SELECT COUNT(*), SUM(c), SUM(t) FROM ({worst})", (evaluation_id,)
        ).fetchone()
        num_rows = sum(part["num_images"] for part in parts.values())
        return Summary(num_rows=num_rows, components=parts, **_counts(*total))


def read_ledger(folder: str | Path, evaluation_id: str | None = None) -> Ledger:
    """The merged ledger of `folder`, empty where there is none yet; LedgerConflict when two files contradict.

    With `evaluation_id` only that evaluation is read: a long run's ledger holds one for every few epochs.

    Changes no file. On resuming read it on every rank before the first one writes (a barrier), or ranks would
    differ in what they take for done.
    """
    return Ledger(folder, evaluation_id)


def _counts(num_images: int, num_correct: int, num_top5: int) -> Counts:
    return Counts(
        num_images=num_images,
        num_correct=num_correct,
        num_top5=num_top5,
        top1=num_correct / num_images,
        top5=num_top5 / num_images,
    )


def _from_row(row: tuple[object, ...]) -> Verdict:
    found = Verdict(*row)  # type: ignore[arg-type]
    # SQLite has no nan: it was written as NULL.
    missing: dict[str, Any] = {name: math.nan for name in _NUMBERS if getattr(found, name) is None}
    return found._replace(correct=bool(found.correct), top5=bool(found.top5), **missing)


def _merge(db: sqlite3.Connection, path: Path, only: str | None) -> None:
    """Adds the rows of one file, opened read-only. To roll back a journal is left to the file's own writer: a
    reader on another machine cannot tell a dead one from a live one. Such a file is read through a copy."""
    try:
        _merge_from(db, path, f"{path.absolute().as_uri()}?mode=ro", only)
    except sqlite3.OperationalError:
        journal = path.with_name(f"{path.name}-journal")
        if not journal.exists() or journal.stat().st_size == 0:
            raise
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            shutil.copyfile(journal, copy.with_name(journal.name))
            shutil.copyfile(path, copy)
            _merge_from(db, path, copy.as_uri(), only)


def _merge_from(db: sqlite3.Connection, path: Path, uri: str, only: str | None) -> None:
    # The primary key begins with the evaluation, so one of many is found without reading the others.
    which, values = ("", ()) if only is None else (" WHERE evaluation = ?", (only,))
    db.execute("ATTACH ? AS part", (uri,))
    try:
        db.execute("BEGIN")  # one snapshot for check and copy, should its writer be at work
        if has_tables(db, "part", path):
            there = columns(db, "part")
            _refuse_conflicts(db, path, there)
            db.execute("INSERT OR IGNORE INTO main.evaluation SELECT * FROM part.evaluation")
            names = ", ".join(name if name in there else "NULL" for name in Verdict._fields)
            db.execute(f"INSERT OR IGNORE INTO main.verdict SELECT {names} FROM part.verdict{which}", values)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
        db.execute("DETACH part")


def _refuse_conflicts(db: sqlite3.Connection, path: Path, there: set[str]) -> None:
    both = "FROM main.verdict a JOIN part.verdict b USING (evaluation, key, component)"
    other = ", ".join(f"b.{name}" if name in there else "NULL" for name in Verdict._fields)
    if pair := db.execute(f"SELECT a.*, {other} {both} WHERE {DIFFERS} LIMIT 1").fetchone():
        half = len(pair) // 2
        raise conflict(path, _from_row(pair[:half]), _from_row(pair[half:]))
    both = "FROM main.evaluation a JOIN part.evaluation b USING (id)"
    if named := db.execute(f"SELECT id {both} WHERE a.description != b.description").fetchone():
        raise LedgerConflict(
            f"{path}: evaluation {named[0]} is described otherwise in another file; evaluate anew"
        )
