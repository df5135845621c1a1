"""Ledgers of an older version read as they were, are written on, and merge with new ones; newer ones are refused."""

import math
import sqlite3
from pathlib import Path

import pytest

from engine.ledger import LedgerConflict, LedgerWriter, Verdict, read_ledger
from engine.ledger_file import ADDED, APPLICATION_ID, SCHEMA_VERSION, columns

# As files of version 0 were made.
FIRST = (
    "CREATE TABLE evaluation (id TEXT PRIMARY KEY, description TEXT NOT NULL)",
    """CREATE TABLE verdict (
        evaluation TEXT NOT NULL, key TEXT NOT NULL, component TEXT NOT NULL, position INT NOT NULL,
        label INT NOT NULL, prediction INT NOT NULL, correct INT NOT NULL, top5 INT NOT NULL, margin REAL,
        broken_by TEXT, step INT, queries INT, PRIMARY KEY (evaluation, key, component)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id={APPLICATION_ID}",
)


def row(position: int, **more: object) -> Verdict:
    verdict = Verdict("e", f"k{position:03d}", "clean", position, 1, 1, True, True, 0.5)
    return verdict._replace(**more)  # type: ignore[arg-type]


def old_file(path: Path, rows: list[Verdict]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    for statement in FIRST:
        db.execute(statement)
    db.executemany(f"INSERT INTO verdict VALUES ({','.join('?' * 12)})", [verdict[:12] for verdict in rows])
    db.commit()
    db.close()
    return path.read_bytes()


def version_of(path: Path) -> int:
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def test_an_old_ledger_reads_as_it_was(tmp_path: Path) -> None:
    before = old_file(tmp_path / "rank-0.sqlite", [row(i, correct=i > 2) for i in range(10)])
    book = read_ledger(tmp_path)
    assert list(book.rows("e")) == [row(i, correct=i > 2) for i in range(10)]
    assert book.summary("e")["num_correct"] == 7
    assert book.scores("e", "clean").num == 0
    assert (tmp_path / "rank-0.sqlite").read_bytes() == before, "reading changes nothing"


def test_an_old_ledger_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.sqlite"
    old_file(path, [row(0)])
    scored = row(1, confidence=0.75, nll=0.25, brier=0.125)
    for _ in range(2):  # the second writer finds the columns
        with LedgerWriter(tmp_path, 0) as writer:
            writer.write([row(0), scored])
    assert version_of(path) == SCHEMA_VERSION == 1
    assert list(read_ledger(tmp_path).rows("e")) == [row(0), scored]
    sums = read_ledger(tmp_path).scores("e", "clean")
    assert (sums.num, sums.nll, sums.brier, sums.brier_squares) == (1, 0.25, 0.125, 0.125**2)


def test_old_and_new_files_merge_in_any_order(tmp_path: Path) -> None:
    scored = row(5, confidence=0.5, nll=0.5, brier=0.5)
    for folder, old, new in ((tmp_path / "a", 0, 1), (tmp_path / "b", 1, 0)):
        old_file(folder / f"rank-{old}.sqlite", [row(i) for i in range(5)])
        with LedgerWriter(folder, new) as writer:
            writer.write([scored])
        assert list(read_ledger(folder).rows("e")) == [*(row(i) for i in range(5)), scored]
        with LedgerWriter(folder, new) as writer:
            writer.write([row(3, prediction=4, correct=False)])
        with pytest.raises(LedgerConflict, match="k003"):
            read_ledger(folder)


def test_a_new_file_has_the_version_and_all_columns(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        assert columns(writer._db, "main") == set(Verdict._fields)
    assert version_of(tmp_path / "rank-0.sqlite") == SCHEMA_VERSION
    assert set(ADDED) <= set(Verdict._fields)


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.sqlite"
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0)])
        writer._db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    for use in (lambda: read_ledger(tmp_path), lambda: LedgerWriter(tmp_path, 0)):
        with pytest.raises(ValueError, match="ledger version 2, this toolkit knows up to 1") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_what_is_no_number_is_nothing(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0, confidence=math.nan, nll=math.nan, brier=math.nan)])
    (found,) = read_ledger(tmp_path).rows("e")
    assert math.isnan(found.nll)
    assert read_ledger(tmp_path).scores("e", "clean").num == 0
