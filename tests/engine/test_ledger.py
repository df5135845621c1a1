"""The ledger: exact counts, one verdict per image, nothing lost and nothing torn when a writer is killed."""

import math
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger import LedgerConflict, LedgerWriter, Verdict, read_ledger, wilson_interval
from engine.verdict import evaluation_id, judge, weights_hash


def row(
    position: int, prediction: int = 1, *, component: str = "clean", evaluation: str = "e", **more: object
) -> Verdict:
    return Verdict(
        evaluation=evaluation,
        key=f"train/{position:05d}",
        component=component,
        position=position,
        label=1,
        prediction=prediction,
        correct=prediction == 1,
        top5=prediction <= 5,
        margin=0.25,
    )._replace(**more)  # type: ignore[arg-type]


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [row(2, 7), row(0, broken_by="apgd-ce", step=12, queries=13), row(1, margin=-math.inf)]
    with LedgerWriter(tmp_path / "ledger", 3) as writer:
        writer.describe("e", {"attack": None, "suite": "clean"})
        writer.write(rows)
    assert (tmp_path / "ledger" / "rank-3.sqlite").is_file()
    ledger = read_ledger(tmp_path / "ledger")
    assert list(ledger.rows("e")) == sorted(rows, key=lambda found: found.position)
    assert list(ledger.rows("e", "pgd")) == []
    assert ledger.evaluations() == {"e": {"attack": None, "suite": "clean"}}
    done = ledger.done("e", "clean")
    assert done.dtype == np.int64
    assert done.tolist() == [0, 1, 2]
    assert ledger.done("e", "pgd").size == 0
    assert ledger.done("other", "clean").dtype == np.int64


def test_numpy_and_torch_numbers(tmp_path: Path) -> None:
    numbers = np.arange(3, dtype=np.int64)
    given_row = row(0)._replace(
        position=numbers[2],
        label=numbers[1],
        prediction=numbers[1],
        correct=np.bool_(True),  # type: ignore[arg-type]
        margin=np.float32(np.nan),  # type: ignore[arg-type]
    )
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([given_row])
    (found,) = read_ledger(tmp_path).rows("e")
    assert found.position == 2
    assert type(found.position) is int
    assert found.correct is True
    assert math.isnan(found.margin)


def test_summary_is_exact(tmp_path: Path) -> None:
    for rank in range(3):
        with LedgerWriter(tmp_path, rank) as writer:
            writer.write(row(i, 1 if i % 4 else 2 + i) for i in range(rank, 100, 3))
            writer.write(row(i, evaluation="other") for i in range(rank, 10, 3))
    summary = read_ledger(tmp_path).summary("e")
    # wrong: 25 multiples of 4, of which only 0 (predicted 2) is still in the top 5
    assert summary["num_images"] == summary["num_rows"] == 100
    assert (summary["num_correct"], summary["num_top5"]) == (75, 76)
    assert (summary["top1"], summary["top5"]) == (0.75, 0.76)
    assert summary["components"]["clean"]["num_correct"] == 75
    with pytest.raises(ValueError, match="no verdict of evaluation nothing; it has: e, other"):
        read_ledger(tmp_path).summary("nothing")


def test_summary_takes_the_worst_of_several_attacks(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write(row(i, 1 if i >= 4 else 9, component="apgd-ce") for i in range(10))
        # Only what is left is attacked again, and image 0 would have withstood this one.
        writer.write(row(i, 1 if i >= 6 else 2, component="square") for i in (0, *range(4, 10)))
    summary = read_ledger(tmp_path).summary("e")
    assert (summary["num_rows"], summary["num_images"], summary["num_correct"]) == (17, 10, 4)
    assert summary["top1"] == 0.4
    assert {name: part["num_correct"] for name, part in summary["components"].items()} == {
        "apgd-ce": 6,
        "square": 4,
    }


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0), row(1)])
        writer.write([row(1, margin=0.5), row(2), row(2)])
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0)])
    with LedgerWriter(tmp_path, 1) as writer:
        writer.write([row(0), row(5)])
    ledger = read_ledger(tmp_path)
    assert ledger.done("e", "clean").tolist() == [0, 1, 2, 5]
    assert all(found.margin == 0.25 for found in ledger.rows("e")), "the first verdict stays"


@pytest.mark.parametrize(
    "other",
    [row(0, 2), row(0, correct=False), row(0)._replace(position=9), row(0, label=3)],
    ids=lambda found: str(found),
)
def test_two_verdicts_conflict(tmp_path: Path, other: Verdict) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0)])
        with pytest.raises(LedgerConflict) as caught:
            writer.write([row(1), other])
        assert all(
            word in str(caught.value) for word in ("train/00000", str(row(0)), str(other), "rank-0.sqlite")
        )
        assert "\n" not in str(caught.value)
        writer.write([row(2)])
    assert read_ledger(tmp_path).done("e", "clean").tolist() == [0, 2], "a refused batch leaves nothing"
    with LedgerWriter(tmp_path, 1) as writer:
        writer.write([other])
    with pytest.raises(LedgerConflict, match="train/00000") as merged:
        read_ledger(tmp_path)
    assert str(row(0)) in str(merged.value)
    assert str(other) in str(merged.value)


def test_same_key_elsewhere_is_no_conflict(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0), row(0, 2, component="pgd"), row(0, 2, evaluation="f")])
    assert len(list(read_ledger(tmp_path).rows("e"))) == 2


def test_descriptions_conflict(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.describe("e", {"eps": 0.1, "steps": 5})
        writer.describe("e", {"steps": 5, "eps": 0.1})
        with pytest.raises(LedgerConflict, match="evaluation e is"):
            writer.describe("e", {"steps": 6})
    with LedgerWriter(tmp_path, 1) as writer:
        writer.describe("e", {"steps": 6})
    with pytest.raises(LedgerConflict, match="evaluation e is described otherwise"):
        read_ledger(tmp_path)


def test_nothing_yet(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "nowhere").done("e", "clean").size == 0
    (tmp_path / "rank-0.sqlite").touch()  # a writer killed at birth
    assert read_ledger(tmp_path).evaluations() == {}
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write([row(0)])
    assert read_ledger(tmp_path).done("e", "clean").tolist() == [0]


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    for use in (lambda: read_ledger(tmp_path), lambda: LedgerWriter(tmp_path, 0)):
        with pytest.raises(
            ValueError, match=r"rank-0\.sqlite: file is not a database; move the file away"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)
    path.unlink()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE verdict (x)")
    foreign.commit()
    foreign.close()
    before = path.read_bytes()
    for use in (lambda: read_ledger(tmp_path), lambda: LedgerWriter(tmp_path, 0)):
        with pytest.raises(ValueError, match="no verdict ledger"):
            use()
    assert path.read_bytes() == before, "somebody else's file stays as it is"


def test_torn_file(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write(row(i) for i in range(2000))
    path = tmp_path / "rank-0.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    with pytest.raises(ValueError, match=r"rank-0\.sqlite: .*malformed.*; move the file away"):
        read_ledger(tmp_path)


def test_a_dead_writers_journal_is_read_through_a_copy(tmp_path: Path) -> None:
    """What a machine leaves that dies inside a commit: pages half written, the old ones in the journal."""
    dead = tmp_path / "dead"
    dead.mkdir()
    with LedgerWriter(tmp_path, 0) as writer:
        writer.write(row(i) for i in range(1000))
        database = writer._db
        database.execute("PRAGMA cache_size=1")  # spills pages into the file before the commit
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE verdict SET position = position + 5000, component = 'torn'")
        for path in tmp_path.glob("rank-0.*"):
            shutil.copy(path, dead)
        database.execute("ROLLBACK")
    files = {path.name: path.read_bytes() for path in dead.iterdir()}
    assert len(files["rank-0.sqlite-journal"]) > 0
    assert b"torn" in files["rank-0.sqlite"]
    assert read_ledger(dead).done("e", "clean").tolist() == list(range(1000))
    assert {path.name: path.read_bytes() for path in dead.iterdir()} == files, "reading changes nothing"
    with LedgerWriter(dead, 0) as writer:
        writer.write([row(1000)])
    assert read_ledger(dead).done("e", "clean").tolist() == list(range(1001))


def test_a_thread_may_write(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, 0) as writer:
        thread = threading.Thread(target=lambda: writer.write([row(0)]))
        thread.start()
        thread.join()
    assert read_ledger(tmp_path).done("e", "clean").tolist() == [0]


WRITER = """
import sys
from engine.ledger import LedgerWriter, Verdict
writer = LedgerWriter(sys.argv[1], 0)
for batch in range(100_000):
    writer.write(
        Verdict("e", str(i), "clean", i, 1, 1, True, True, 0.5) for i in range(50 * batch, 50 * batch + 50)
    )
    print(batch, flush=True)
"""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """Each writer starts over what killed ones left; every finished batch is there and whole."""
    moment, last = random.Random(0), -1
    root = Path(__file__).parents[2]
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline().strip() == "0"
        time.sleep(moment.uniform(0.0, 0.25))
        writer.kill()
        rest = writer.stdout.read().split()
        writer.stdout.close()
        assert writer.wait() == -9
        last = max(last, *(int(batch) for batch in rest), 0)
        done = read_ledger(tmp_path).done("e", "clean")
        assert len(done) % 50 == 0
        assert len(done) >= 50 * (last + 1)
        assert np.array_equal(done, np.arange(len(done)))
    with LedgerWriter(tmp_path, 0) as again:
        assert again._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_wilson_known_numbers() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I: method 3 without continuity correction.
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert wilson_interval(k, n) == pytest.approx(expected, abs=5e-5)
    for k, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="needs 0 <= k <= n"):
            wilson_interval(k, n)


@given(n=st.integers(1, 50_000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_wilson_ends_solve_its_equation(n: int, share: float, confidence: float) -> None:
    k = round(n * share)
    lo, hi = wilson_interval(k, n, confidence)
    assert 0 <= lo <= k / n <= hi <= 1
    mirrored = wilson_interval(n - k, n, confidence)
    assert (lo, hi) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)
    if 0 < k < n:  # each end is as many standard errors away from k / n as the other
        distances = [abs(k / n - end) / math.sqrt(end * (1 - end) / n) for end in (lo, hi)]
        assert distances[0] == pytest.approx(distances[1], rel=1e-6)


def test_judge_by_hand() -> None:
    logits = torch.tensor(
        [
            [3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0],  # right by 1
            [3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0],  # wrong by 5, not among five
            [3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0],  # wrong by 4, fifth
            [0.0] * 7,  # all equal: the first class
            [math.nan] * 7,  # the label is what argmax would choose
            [3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0],  # padding
        ]
    )
    found = judge(logits, torch.tensor([0, 5, 4, 0, 0, -1]))
    assert found.prediction[:4].tolist() == [0, 0, 0, 0]
    assert found.prediction.dtype == torch.int64
    assert found.correct.tolist() == [True, False, False, True, False, False]
    assert found.top5[:5].tolist() == [True, False, True, True, False]
    assert found.margin[:4].tolist() == [1.0, -5.0, -4.0, 0.0]
    assert found.margin[4].isnan()


@given(st.integers(2, 12), st.integers(0, 1000))
def test_judge_margin_agrees_with_correct(num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, num_classes, generator=generator)
    label = torch.randint(num_classes, (16,), generator=generator)
    found = judge(logits, label)
    assert torch.equal(found.correct, found.margin > 0)
    rank = (logits > logits.gather(1, label[:, None])).sum(dim=1)
    assert torch.equal(found.top5, rank < 5)


ID = {
    "weights_sha256": "ab",
    "suite": "clean",
    "contract": "bai2021",
    "attack": None,
    "seed": 0,
    "precision": "float32",
}


def an_id(**changes: object) -> str:
    return evaluation_id(**{**ID, **changes})  # type: ignore[arg-type]


def test_evaluation_id() -> None:
    attack = {"eps": 4 / 255, "steps": 20, "norm": "linf"}
    first = an_id(attack=attack)
    assert len(first) >= 16
    assert int(first, 16) > 0
    assert first == an_id(attack=dict(reversed(attack.items())))
    changes: list[dict[str, object]] = [
        {"attack": attack | {"steps": 21}},
        {"attack": attack, "seed": 1},
        {"attack": attack, "suite": "x"},
    ]
    for name in ("weights_sha256", "contract", "precision"):
        changes.append({"attack": attack, name: "x"})
    changes.append({})
    ids = {an_id(**change) for change in changes}
    assert len(ids | {first}) == len(changes) + 1
    with pytest.raises(ValueError, match="JSON"):
        an_id(attack={"eps": math.nan})


def test_weights_hash() -> None:
    weights = {
        "a": torch.arange(6.0).reshape(2, 3),
        "step": torch.tensor(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    first = weights_hash(weights)
    assert len(first) == 64
    assert first == weights_hash(dict(reversed(weights.items())))
    assert weights_hash(weights | {"a": torch.nn.Parameter(weights["a"])}) == first
    transposed = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert not transposed.is_contiguous()
    assert weights_hash(weights | {"a": transposed}) == first
    nudged = weights["a"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    others = [
        {"a": nudged},
        {"a": weights["a"].reshape(3, 2)},
        {"a": weights["a"].double()},
        {"b": torch.empty(0)},
    ]
    others += [{"half": torch.ones(2, dtype=torch.float16)}, {"step": torch.tensor([3])}]
    others.append({"half": torch.ones(2, dtype=torch.bfloat16).view(torch.int16)})  # the same bytes
    assert len({weights_hash(weights | other) for other in others} | {first}) == len(others) + 1
