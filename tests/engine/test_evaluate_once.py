"""Each image was judged once: a ledger with a row too few, too many, or of another image gives no result."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bits.environment import open_environment
from data.index import load_index
from data.transform import EvalTransform
from engine.eval_fields import AttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.ledger import LedgerConflict, LedgerWriter, read_ledger
from engine.verdict import weights_hash

SIZE = 16
CLEAN = SuiteEval(suite="clean")
PGD = AttackEval(attack="pgd", norm="linf", eps=8 / 255, step_size=4 / 255, steps=1)
ENTRIES = [
    pytest.param(entry.model_copy(update={"num_images": number}), id=f"{name}-{number or 'all'}")
    for name, entry in (("clean", CLEAN), ("pgd", PGD))
    for number in (None, 30)
]
every_entry = pytest.mark.parametrize("entry", ENTRIES)
Entry = SuiteEval | AttackEval


@pytest.fixture
def evaluator(few_digits: Path, tmp_path: Path) -> Evaluator:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 10))
    return Evaluator(
        env=open_environment("cpu"), model=model, weights_sha256=weights_hash(model.state_dict()),
        index=load_index(few_digits), transform=EvalTransform(mode="squash"), suite="clean", weights="raw",
        image_size=SIZE, batch_size=16, num_workers=0, seed=0, ledger=tmp_path / "ledger", recipe="0" * 16,
    )  # fmt: skip


def change(evaluator: Evaluator, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(evaluator.ledger / "rank-0.sqlite")) as ledger, ledger:
        assert ledger.execute(statement, values).rowcount > 0


def last_component(entry: Entry) -> str:
    return "clean" if isinstance(entry, SuiteEval) else entry.name


@every_entry
def test_a_missing_row_is_judged_again(evaluator: Evaluator, entry: Entry) -> None:
    whole = evaluator.run(entry)
    place = int(evaluator.keys(entry)[7])
    change(
        evaluator, "DELETE FROM verdict WHERE position = ? AND component = ?", place, last_component(entry)
    )
    assert evaluator.run(entry) == whole


@every_entry
def test_a_row_that_never_arrives_is_missed(
    evaluator: Evaluator, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a rank writes to a disk of its own."""
    real: Callable[[LedgerWriter, Any], None] = LedgerWriter.write
    lost = int(evaluator.keys(entry)[3])

    def write(writer: LedgerWriter, rows: Any) -> None:
        real(writer, [row for row in rows if (row.position, row.component) != (lost, last_component(entry))])

    monkeypatch.setattr(LedgerWriter, "write", write)
    total = len(evaluator.keys(entry))
    with pytest.raises(ValueError, match=rf"has {total - 1} of {total} images for {last_component(entry)}"):
        evaluator.run(entry)


@every_entry
def test_a_row_of_another_image_is_noticed(evaluator: Evaluator, entry: Entry) -> None:
    """As many rows as images, and each position once; but one name is not that of the index."""
    evaluator.run(entry)
    place = int(evaluator.keys(entry)[7])
    change(evaluator, "UPDATE verdict SET key = 'another' WHERE position = ?", place)
    with pytest.raises(ValueError, match=r"images for clean, but not those of the index \(key hash \w{16}"):
        evaluator.run(entry)


@every_entry
def test_a_row_too_many_is_noticed(evaluator: Evaluator, entry: Entry) -> None:
    """Foreign, of an image that is not asked for, or of one that is there under another name."""
    evaluator.run(entry)
    keys = evaluator.keys(entry).tolist()
    outside = next((key for key in range(evaluator.index.num_samples) if key not in keys), 7000)
    names = [evaluator.index.name(outside)] if outside < 7000 else []
    for name, position in [("foreign", outside), *((name, outside) for name in names), ("twice", keys[2])]:
        copy = (
            "INSERT INTO verdict SELECT evaluation, ?, component, ?, label, prediction, correct, top5, margin, "
            "broken_by, step, queries, confidence, nll, brier FROM verdict WHERE position = ?"
        )
        change(evaluator, copy, name, position, keys[1])
        with pytest.raises(ValueError, match=f"has {len(keys) + 1} of {len(keys)} images for clean"):
            evaluator.run(entry)
        change(evaluator, "DELETE FROM verdict WHERE key = ?", name)
    evaluator.run(entry)


@every_entry
def test_an_image_judged_by_two_ranks(evaluator: Evaluator, entry: Entry) -> None:
    """The same verdict twice counts once; two verdicts are no result."""
    whole = evaluator.run(entry)
    rows = list(read_ledger(evaluator.ledger).rows(whole["evaluation"]))
    with LedgerWriter(evaluator.ledger, 1) as other:
        other.write(rows[:9])
    assert evaluator.run(entry) == whole
    with LedgerWriter(evaluator.ledger, 2) as other:
        other.write([rows[4]._replace(prediction=9 - rows[4].prediction, correct=not rows[4].correct)])
    with pytest.raises(LedgerConflict):
        evaluator.run(entry)


@pytest.mark.parametrize("number", [1, 15, 16, 17, 69, 70, 500])
def test_subsets_of_any_size_are_proven(evaluator: Evaluator, number: int) -> None:
    """One image, one less and one more than a batch, all but one, all."""
    entry = CLEAN.model_copy(update={"num_images": number})
    total = min(number, evaluator.index.num_samples)
    result = evaluator.run(entry)
    assert result["num_images"] == total
    positions = read_ledger(evaluator.ledger).done(result["evaluation"], "clean")
    assert np.array_equal(positions, evaluator.keys(entry))
    larger = replace(evaluator, batch_size=7, ledger=evaluator.ledger.with_name("other"))
    assert larger.run(entry) == result
