"""One file of the ledger: an image's verdict, the tables that hold it, and the writer of the file.

Files of older versions are read as they are; the columns that they lack hold nothing. Who writes into one adds them.

Journal mode TRUNCATE, not WAL: WAL needs memory shared by all who open the file; network disks have none. The
rollback journal needs only ordered writes (synchronous=FULL) and locks; a killed writer leaves whole batches.
"""

import json
import math
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

APPLICATION_ID = 0x52424C47  # "RBLG", in the header of every ledger file
LOCK_TIMEOUT_S = 60.0
SCHEMA_VERSION = 1  # in the header as user_version: whoever adds a column counts it up
ADDED = ("confidence", "nll", "brier")  # columns, REAL, that files of version 0 lack
SCHEMA = (
    "CREATE TABLE evaluation (id TEXT PRIMARY KEY, description TEXT NOT NULL)",
    """CREATE TABLE verdict (
        evaluation TEXT NOT NULL, key TEXT NOT NULL, component TEXT NOT NULL, position INT NOT NULL,
        label INT NOT NULL, prediction INT NOT NULL, correct INT NOT NULL, top5 INT NOT NULL, margin REAL,
        broken_by TEXT, step INT, queries INT, confidence REAL, nll REAL, brier REAL,
        PRIMARY KEY (evaluation, key, component)
    ) WITHOUT ROWID""",
)


class LedgerConflict(ValueError):
    """Two verdicts on one image, or two descriptions of one evaluation, that cannot both be true."""


class Verdict(NamedTuple):
    """One image under one component (an attack of several, or the suite's name) of one evaluation."""

    evaluation: str
    key: str  # the sample's name in its data set
    component: str
    position: int  # 0 .. num_samples - 1
    label: int
    prediction: int
    correct: bool
    top5: bool
    margin: float  # nan where the logits were not numbers
    broken_by: str | None = None
    step: int | None = None
    queries: int | None = None
    # Of the softmax of the logits; nan where these were no numbers, and in rows of older versions.
    confidence: float = math.nan  # probability of the predicted class
    nll: float = math.nan  # minus the log of the label's probability
    brier: float = math.nan  # sum over classes of (probability - 1 for the label, 0 for others) squared

    def __str__(self) -> str:
        right = "right" if self.correct else "wrong"
        return f"prediction {self.prediction} ({right}, label {self.label}, position {self.position})"


class LedgerWriter:
    """Appends to `folder`/rank-`rank`.sqlite; calls may come from any thread, one after the other."""

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.path = Path(folder) / f"rank-{rank}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with one_line_errors(self.path):
            # The engine may write from the thread of its deferred host work, not the one that opens the file.
            self._db = sqlite3.connect(
                self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self.close = weakref.finalize(self, self._db.close)
            has_tables(self._db, "main", self.path)  # before anything is changed in a file that is not ours
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                if has_tables(self._db, "main", self.path):
                    self._add_columns()
                else:
                    for statement in (*SCHEMA, f"PRAGMA application_id={APPLICATION_ID}"):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _add_columns(self) -> None:
        there = columns(self._db, "main")
        for name in ADDED:
            if name not in there:
                self._db.execute(f"ALTER TABLE verdict ADD COLUMN {name} REAL")

    def describe(self, evaluation_id: str, description: Mapping[str, object]) -> None:
        """Says what `evaluation_id` stands for; LedgerConflict when the file says something else."""
        text = json.dumps(description, sort_keys=True, allow_nan=False)
        with one_line_errors(self.path), self._transaction():
            self._db.execute("INSERT OR IGNORE INTO evaluation VALUES (?, ?)", (evaluation_id, text))
            (known,) = self._db.execute(
                "SELECT description FROM evaluation WHERE id = ?", (evaluation_id,)
            ).fetchone()
            if known != text:
                raise LedgerConflict(
                    f"{self.path}: evaluation {evaluation_id} is {known}, not {text}; evaluate anew"
                )

    def write(self, rows: Iterable[Verdict]) -> None:
        """All rows or, killed or refused, none. A verdict that is there already is left as it is."""
        with one_line_errors(self.path), self._transaction():
            for row in rows:
                self._insert(_plain(row))

    def _insert(self, row: Verdict) -> None:
        marks = ",".join("?" * len(row))
        if self._db.execute(f"INSERT OR IGNORE INTO verdict VALUES ({marks})", row).rowcount == 1:
            return
        query = "SELECT * FROM verdict WHERE evaluation = ? AND key = ? AND component = ?"
        known = Verdict(*self._db.execute(query, row[:3]).fetchone())
        if known[3:7] != row[3:7]:
            raise conflict(self.path, known, row)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back on a full disk
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain(row: Verdict) -> Verdict:
    """numpy's numbers as Python's: sqlite3 would store an int64 as bytes. SQLite makes nan NULL by itself."""
    assert row.position >= 0, f"padding row in the ledger: {row}"
    return row._replace(
        position=int(row.position),
        label=int(row.label),
        prediction=int(row.prediction),
        correct=bool(row.correct),
        top5=bool(row.top5),
        margin=float(row.margin),
        confidence=float(row.confidence),
        nll=float(row.nll),
        brier=float(row.brier),
        step=None if row.step is None else int(row.step),
        queries=None if row.queries is None else int(row.queries),
    )


def conflict(path: Path, known: Verdict, row: Verdict) -> LedgerConflict:
    return LedgerConflict(
        f"{path}: image {known.key} ({known.component}, evaluation {known.evaluation}) has two verdicts: "
        f"{known} and {row}; the evaluation does not repeat or its data changed; move the ledger away"
    )


def has_tables(db: sqlite3.Connection, schema: str, path: Path) -> bool:
    """False for an empty file (a writer killed at birth); ValueError for somebody else's database."""
    (application_id,) = db.execute(f"PRAGMA {schema}.application_id").fetchone()
    (num_objects,) = db.execute(f"SELECT COUNT(*) FROM {schema}.sqlite_master").fetchone()
    if num_objects and application_id != APPLICATION_ID:
        raise ValueError(
            f"{path} is a SQLite file but no verdict ledger; give another folder or move it away"
        )
    (version,) = db.execute(f"PRAGMA {schema}.user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has ledger version {version}, this toolkit knows up to {SCHEMA_VERSION}; read it with a newer one"
        )
    return bool(num_objects)


def columns(db: sqlite3.Connection, schema: str) -> set[str]:
    """Those that the file's table of verdicts has."""
    return {row[1] for row in db.execute(f"PRAGMA {schema}.table_info(verdict)")}


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as a user's: what the file system refuses, and what is no ledger."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"ledger {path}: {error}; check the disk, the permissions and who else writes there"
        ) from None
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"ledger {path}: {error}; move the file away and evaluate its images again"
        ) from None
