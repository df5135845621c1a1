"""What a run says of bad images, when it ends for them, and how it goes on; evaluations that count them as wrong."""

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bits.checkpoint import latest_checkpoint
from data.index import DatasetIndex, load_index
from data.order import permutation
from engine.cli import Launch, main
from engine.ledger import read_ledger
from engine.log import read_log

CPU = Launch(backend="cpu")
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "max_bad": 0.05},  # 3 of 70
    "model": {"name": "small_cnn"},
    "optim": {"lr": 1e-3},
    "run": {"epochs": 2, "batch_size": 8, "report_every": 2, "gallery_images": 2},
}


@pytest.fixture
def index(few_digits: Path, tmp_path: Path) -> DatasetIndex:
    shutil.copytree(few_digits, tmp_path / "shards")
    return load_index(tmp_path / "shards")


@pytest.fixture
def recipe(index: DatasetIndex, tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], "train": str(index.root)}}))
    return path


def damage(index: DatasetIndex, keys: Sequence[int]) -> list[str]:
    """The names of the samples that are bad from now on."""
    for key in keys:
        shard, _ = index.locate(key)
        with (index.root / index.shards[shard].name).open("r+b") as file:
            file.seek(int(index.record(key)["offset"]) + 45)
            file.write(b"\xff\xff\xff")
    return [index.name(key) for key in keys]


def train(recipe: Path, output: Path, *words: str) -> int:
    return main(["train", str(recipe), "--output", str(output), *words], CPU, program="p")


def test_few_bad_images_are_replaced_and_named_once(
    index: DatasetIndex, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order = permutation(70, seed=0, epoch=0)
    names = damage(index, order[[3, 40]].tolist())
    assert train(recipe, tmp_path / "run") == 0
    log = read_log(tmp_path / "run/log.jsonl")
    bad = [entry for entry in log if entry["event"] == "bad"]
    assert [(entry["step"], entry["num_bad"], entry["limit"]) for entry in bad] == [(1, 1, 3), (7, 2, 3)]
    assert [[image["key"] for image in entry["images"]] for entry in bad] == [[names[0]], [names[1]]]
    assert all("crc32" in image["reason"] for entry in bad for image in entry["images"])
    assert log[-1]["event"] == "end"
    err = capfd.readouterr().err
    for name in names:
        assert err.count(f"bad sample {name!r} in shard train-00000") == 1


def test_one_too_many_ends_the_run_with_its_state_saved(
    index: DatasetIndex, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    order = permutation(70, seed=0, epoch=0)
    names = damage(index, order[[3, 17, 18, 60]].tolist())
    assert train(recipe, tmp_path / "run") == 3
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: bad sample {names[3]!r} in shard train-00000")
    assert "4 images are bad and data.max_bad 0.05 allows 3 of 70; the state is saved" in line
    assert json.loads((tmp_path / "run/exit.json").read_text()) == {"exit_code": 3}
    log = read_log(tmp_path / "run/log.jsonl")
    assert [entry["event"] for entry in log[-2:]] == ["bad", "error"]
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    assert found[0].step == log[-1]["step"] == 9
    assert train(recipe, tmp_path / "run", "data.max_bad=0.1") == 0
    log = read_log(tmp_path / "run/log.jsonl")
    assert [entry["resumed"] for entry in log if entry["event"] == "start"] == [False, True]
    assert log[-1]["event"] == "end"


def test_none_may_be_bad(index: DatasetIndex, recipe: Path, tmp_path: Path) -> None:
    damage(index, [int(permutation(70, seed=0, epoch=0)[0])])
    assert train(recipe, tmp_path / "run", "data.max_bad=0") == 3


@pytest.mark.parametrize(("max_bad", "code"), [(0.05, 0), (0.02, 3)])
def test_processes_add_up_what_they_find(
    index: DatasetIndex,
    recipe: Path,
    tmp_path: Path,
    launch: Callable[..., Any],
    max_bad: float,
    code: int,
) -> None:
    """Each of two ranks meets one in its half of a batch; rank 0 knows what is wrong with that of rank 1."""
    order = permutation(70, seed=0, epoch=0)
    names = damage(index, order[[8, 15]].tolist())
    words = ("train", recipe, f"data.max_bad={max_bad}", "--output", tmp_path / "run")
    done = launch("gpu", "--cpu", "--num-processes", "2", *words)
    assert done.returncode == code, done.stderr
    (bad,) = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "bad"]
    assert {image["key"] for image in bad["images"]} == set(names)
    assert all("crc32" in image["reason"] for image in bad["images"])
    assert bad["num_bad"] == 2
    assert len(re.findall(r"^error: ", done.stderr, flags=re.MULTILINE)) == (code == 3)


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Path:
    assert train(recipe, tmp_path / "run", "run.max_steps=2") == 0
    return tmp_path / "run"


def evaluate(run: Path, index: DatasetIndex, *words: str, verb: str = "eval") -> int:
    return main([verb, str(run), "--data", str(index.root), *words], CPU, program="p")


def test_an_evaluation_stops_at_a_bad_image(
    run: Path, index: DatasetIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    (name,) = damage(index, [33])
    assert evaluate(run, index) == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"error: bad sample {name!r} in shard")
    assert not (run / "results/clean.json").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_count_as_wrong_where_that_is_asked_for(
    run: Path, index: DatasetIndex, num_workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("num_workers: 0", f"num_workers: {num_workers}"))
    assert evaluate(run, index) == 0
    clean = json.loads((run / "results/clean.json").read_text())
    names = damage(index, [0, 33, 69])
    assert evaluate(run, index, "--bad-images", "wrong") == 0
    err = capfd.readouterr().err
    for name in names:
        assert err.count(f"bad sample {name!r} in shard train-00000") == 1
    found = [json.loads(path.read_text()) for path in (run / "results").glob("clean*.json")]
    (result,) = [entry for entry in found if entry["evaluation"] != clean["evaluation"]]
    assert (result["num_images"], result["num_bad"]) == (70, 3)
    assert result["contract"] == f"{clean['contract']}-badwrong"
    before, after = (
        {row.key: row for row in read_ledger(run / "ledger").rows(entry["evaluation"])}
        for entry in (clean, result)
    )
    for name, row in after.items():
        if name in names:
            assert (row.prediction, row.correct, row.top5, row.label) == (
                -1,
                False,
                False,
                before[name].label,
            )
        else:
            assert row[3:9] == before[name][3:9]


def test_an_attack_breaks_no_bad_image(run: Path, index: DatasetIndex) -> None:
    names = damage(index, [5])
    words = ("--attack", "pgd", "--eps", "4/255", "--steps", "1", "--bad-images", "wrong")
    assert evaluate(run, index, *words, verb="attack") == 0
    book = read_ledger(run / "ledger")
    (identity,) = book.evaluations()
    rows = [row for row in book.rows(identity) if row.key in names]
    assert [(row.prediction, row.correct, row.broken_by) for row in rows] == [(-1, False, None)] * 2


def test_a_ledger_of_other_images_gives_no_result(
    run: Path, index: DatasetIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    """As many rows as images and each position once, but one name is not of the index."""
    assert evaluate(run, index) == 0
    with contextlib.closing(sqlite3.connect(run / "ledger/rank-0.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE verdict SET key = 'another' WHERE position = 7")
    assert evaluate(run, index) == 2
    assert "has 70 images for clean, but not those of the index (key hash" in capfd.readouterr().err
