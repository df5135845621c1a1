"""AutoAttack as an evaluation: rows are complete and the same however it is interrupted and whoever shares the work."""

import json
import re
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine import lane_state
from engine.autoattack import run_autoattack
from engine.block_attack import stream_key
from engine.blocks import block_size
from engine.chosen import chosen
from engine.cli import Launch as Where
from engine.cli import main
from engine.eval_fields import AutoAttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.ledger import LedgerWriter, read_ledger
from engine.stop import Stopped
from robust.autoattack import autoattack as attack_by_hand
from robust.square import Square
from tests.engine.autoattack_cases import (
    COMPONENTS,
    EPS,
    LANES,
    NUM,
    SIZE,
    in_two,
    num_calls,
    replace_entry,
    rows_of,
)

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
CPU = Where(backend="cpu")


def test_every_image_has_the_rows_it_should_and_no_other(
    evaluator: Evaluator, entry: AutoAttackEval, images: tuple[Tensor, Tensor]
) -> None:
    evaluator.model.train()
    result = run_autoattack(evaluator, entry)
    assert evaluator.model.training, "the mode is put back"
    rows = rows_of(evaluator, result)
    names = {name for name, _ in rows}
    assert len(names) == NUM
    ends: dict[str, int] = {}
    for name in names:
        own = [rows[name, part] for part in COMPONENTS if (name, part) in rows]
        assert [row.component for row in own] == list(COMPONENTS[: len(own)]), "in turn"
        assert all(row.correct for row in own[:-1])
        assert not own[-1].correct or len(own) == len(COMPONENTS)
        assert [row.broken_by for row in own[:-1]] == [None] * (len(own) - 1)
        ends["robust" if own[-1].correct else own[-1].component] = 1
        for row in own:
            assert row.broken_by == (row.component if not row.correct and row.component != "clean" else None)
            assert (row.margin > 0) == row.correct
            assert row.top5 or not row.correct
            assert (row.queries is None) == (row.component == "clean")
    assert {"robust", "clean", "apgd-ce"} <= ends.keys(), "the cases are among the images"
    robust = sum(row.correct for (_, part), row in rows.items() if part == "square")
    assert result["num_correct"] == robust
    assert result["top1"] == robust / NUM
    assert result["num_images"] == NUM
    assert result["version"] == "short"
    parts = result["components"]
    assert list(parts) == list(COMPONENTS)
    for before, after in pairwise(COMPONENTS):
        assert parts[after]["num_images"] == parts[before]["num_correct"]
        assert parts[after]["num_broken"] == parts[after]["num_images"] - parts[after]["num_correct"]
    survivors = [row.queries for (_, part), row in rows.items() if part == "square" and row.correct]
    assert survivors
    assert set(survivors) == {Square(queries=30).steps}


def test_it_is_the_attack_of_the_python_interface(
    evaluator: Evaluator, entry: AutoAttackEval, images: tuple[Tensor, Tensor]
) -> None:
    result = run_autoattack(evaluator, replace_entry(entry, save_images=True))
    keys = evaluator.keys(entry)
    image, label = (part[torch.from_numpy(keys)] for part in images)
    names = [evaluator.index.name(int(key)) for key in keys]
    wanted = attack_by_hand(
        evaluator.model.eval(),
        image,
        label,
        eps=EPS,
        version="short",
        seed=7,
        keys=[stream_key(name) for name in names],
        lanes=LANES,
        block=block_size(NUM, LANES),
    )
    rows = rows_of(evaluator, result)
    broken = {name: row.component for (name, _), row in rows.items() if not row.correct}
    assert [broken.get(name) for name in names] == list(wanted.broken_by)
    assert result["top1"] == wanted.robust_accuracy
    (folder,) = (evaluator.ledger.parent / "adversarial").iterdir()
    stored = torch.cat([load_file(path)["adversarial"] for path in sorted(folder.iterdir())])
    assert torch.equal(stored, wanted.adversarial)


# ---- interruptions


@pytest.mark.parametrize("chunks", [1, 7])
def test_stopped_again_and_again_it_ends_with_the_same_rows(
    chunks: int, evaluator: Evaluator, entry: AutoAttackEval, tmp_path: Path
) -> None:
    whole = run_autoattack(evaluator, entry)
    wanted, calls = rows_of(evaluator, whole), num_calls(evaluator)
    broken = replace(evaluator, ledger=tmp_path / "broken/ledger")
    for stops in range(1000):
        left = iter([False] * chunks)
        try:
            result = run_autoattack(replace(broken, stop_asked=lambda left=left: next(left, True)), entry)  # type: ignore[misc]
            break
        except Stopped:
            assert (broken.ledger / "lanes-0.safetensors").exists() or stops == 0
    assert stops > 3
    assert rows_of(broken, result) == wanted
    assert {**result, "notes": 0} == {**whole, "notes": 0}
    assert not (broken.ledger / "lanes-0.safetensors").exists(), "what is over is taken away"
    if chunks == 7:
        assert num_calls(evaluator) - calls < 1.2 * calls, "lanes went on where they were"
    before = num_calls(evaluator)
    assert run_autoattack(broken, entry) == result
    assert num_calls(evaluator) == before, "a finished evaluation asks the model nothing"


@pytest.mark.parametrize("keeps_lanes", [True, False])
def test_killed_at_a_write_it_ends_with_the_same_rows(
    keeps_lanes: bool,
    evaluator: Evaluator,
    entry: AutoAttackEval,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = replace_entry(entry, save_images=True)
    whole = run_autoattack(evaluator, entry)
    broken = replace(evaluator, ledger=tmp_path / "broken/ledger")
    monkeypatch.setattr(lane_state, "MOST_SHARE", 1e9 if keeps_lanes else 1e-9)
    real = LedgerWriter.write
    for num_writes in range(2, 1000, 3):
        left = [num_writes]

        def write(writer: LedgerWriter, rows: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("killed")
            real(writer, rows)

        monkeypatch.setattr(LedgerWriter, "write", write)
        try:
            result = run_autoattack(broken, entry)
            break
        except OSError:
            continue
    assert num_writes > 5
    assert rows_of(broken, result) == rows_of(evaluator, whole)
    stored = [sorted((e.ledger.parent / "adversarial").rglob("*.safetensors")) for e in (evaluator, broken)]
    assert len(stored[0]) == 3
    for one, other in zip(*stored, strict=True):
        assert torch.equal(load_file(one)["adversarial"], load_file(other)["adversarial"])


def test_images_asked_for_later_are_found_again(evaluator: Evaluator, entry: AutoAttackEval) -> None:
    first = run_autoattack(evaluator, entry)
    assert not (evaluator.ledger.parent / "adversarial").exists()
    again = run_autoattack(evaluator, replace_entry(entry, save_images=True))
    assert again == first
    files = sorted((evaluator.ledger.parent / "adversarial").rglob("*.safetensors"))
    image = torch.cat([load_file(path)["adversarial"] for path in files])
    assert image.shape == (NUM, 3, SIZE, SIZE)
    evaluator.model.eval()
    labels = [evaluator.index.label(int(key)) for key in evaluator.keys(entry)]
    right = evaluator.model(image).argmax(1) == torch.tensor(labels)
    assert int(right.sum()) == first["num_correct"]


def test_a_missing_row_is_noticed(evaluator: Evaluator, entry: AutoAttackEval) -> None:
    result = run_autoattack(evaluator, entry)
    with sqlite3.connect(evaluator.ledger / "rank-0.sqlite") as db:
        db.execute(
            "DELETE FROM verdict WHERE component = 'apgd-t' AND position = (SELECT MIN(position) FROM "
            "verdict WHERE component = 'apgd-t')"
        )
    db.close()
    with pytest.raises(ValueError, match="lacks apgd-t on 1 images that were right before it"):
        run_autoattack(evaluator, entry)
    assert result["num_images"] == NUM


# ---- several processes


def test_two_processes_find_what_one_finds(
    evaluator: Evaluator, entry: AutoAttackEval, tmp_path: Path
) -> None:
    alone = run_autoattack(evaluator, entry)
    evaluator.model.eval()  # which two threads share
    two = replace(evaluator, ledger=tmp_path / "two/ledger")
    first, second = in_two(two, entry)
    assert first == second == alone
    assert rows_of(two, first) == rows_of(evaluator, alone)
    assert sorted(path.name for path in two.ledger.glob("rank-*.sqlite")) == [
        "rank-0.sqlite",
        "rank-1.sqlite",
    ]
    assert not list(two.ledger.glob("*.here"))


def test_a_stop_that_only_one_process_hears_stops_both(evaluator: Evaluator, entry: AutoAttackEval) -> None:
    evaluator.model.eval()
    asked = iter([False] * 3)
    found = in_two(evaluator, entry, lambda: next(asked, True), lambda: False)
    assert all(isinstance(one, Stopped) for one in found)
    result = run_autoattack(evaluator, entry)
    assert result["num_images"] == NUM


# ---- which images


def test_a_list_of_images(evaluator: Evaluator, entry: AutoAttackEval, tmp_path: Path) -> None:
    names = [evaluator.index.name(key) for key in (5, 200, 17)]
    lines = ["# from a paper", names[0], "", f"val/{names[1]}.JPEG", f"{names[2]}.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    listed = SuiteEval(suite="clean", images=str(tmp_path / "list.txt"))
    found = chosen(evaluator.index, listed)
    assert found.keys.tolist() == [5, 17, 200]
    assert re.fullmatch(r"\[3-[0-9a-f]{8}\]", found.subset)
    result = evaluator.run(listed)
    assert (result["num_images"], result["suite"].split("@")[0]) == (3, f"clean{found.subset}")
    whole = rows_of(evaluator, run_autoattack(evaluator, entry))
    (tmp_path / "list.txt").write_text("\n".join(sorted({name for name, _ in whole})[:9]))
    few = replace_entry(entry, num_images=None, images=str(tmp_path / "list.txt"))
    part = rows_of(evaluator, run_autoattack(evaluator, few))
    assert len({name for name, _ in part}) == 9
    assert all(row.correct == whole[key].correct and row.step == whole[key].step for key, row in part.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# nothing\n", "names no image: the selection is empty"),
        ("1/none\n2/none\n", "names 2 of 2 images that are not in the shards, such as 1/none, 2/none"),
        ("/\n", "names 1 of 1 images"),
    ],
)
def test_a_list_that_cannot_be(text: str, says: str, evaluator: Evaluator, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        chosen(evaluator.index, SuiteEval(suite="clean", images=str(tmp_path / "list.txt")))
    assert "\n" not in str(caught.value)


def test_a_name_twice_is_refused(evaluator: Evaluator, tmp_path: Path) -> None:
    name = evaluator.index.name(3)
    (tmp_path / "list.txt").write_text(f"{name}\n{name}.png\n")
    with pytest.raises(ValueError, match="names an image twice"):
        chosen(evaluator.index, SuiteEval(suite="clean", images=str(tmp_path / "list.txt")))


# ---- the command line


@pytest.mark.slow
def test_the_verb_on_one_process_and_on_two(made: Path, launch: Launch, tmp_path: Path) -> None:
    """At a radius where the first component breaks everything, `standard` costs little."""
    words = [
        "attack",
        made,
        "--attack",
        "autoattack",
        "--eps",
        "200/255",
        "--batch-size",
        "8",
        "--save-images",
    ]
    found = []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        flags = ["--cpu", *(["--num-processes", str(processes)] if processes > 1 else [])]
        done = launch("gpu", *flags, *words, "--output", out)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "aa_linf200" in done.stdout
        result = json.loads((out / "results/aa_linf200.json").read_text())
        rows = read_ledger(out / "ledger").rows(result["evaluation"])
        found.append({(r.key, r.component): (r.prediction, r.correct, r.step) for r in rows})
        assert result["num_images"] == 70
        assert result["version"] == "standard"
        assert result["attack"]["lanes"] == 8
        assert len(list((out / "adversarial").rglob("block-*.safetensors"))) == 5
        assert "of 70 images done" in done.stderr or processes == 2
    assert found[0] == found[1]
    report = launch("gpu", "report", tmp_path / "out1")
    assert report.returncode == 0, report.stderr[-2000:]
    page = (tmp_path / "out1/report.html").read_text()
    assert "AutoAttack standard" in page
    assert "is not shown" not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--eps 4/255 --version strong", "--version is 'strong', but AutoAttack's versions are standard"),
        ("--eps 4/255 --steps 5", "--steps does not belong to this attack; drop it"),
        ("--eps 4/255 --restarts 2", "--restarts does not belong to this attack; drop it"),
        ("--eps 4/255 --no-random-start", "--no-random-start does not belong to this attack; drop it"),
        ("--eps 4", "--eps is 4, but images and radii live in [0, 1]; likely meant: 4/255"),
        ("--norm l2 --eps 100", "--eps is 100, but images of 16 px are at most"),
        ("--norm l3 --eps 4/255", "--norm is 'l3', but must be 'linf', 'l2' or 'l1'"),
        ("--norm l1 --eps 4000", "--eps is 4000, but images of 16 px are at most 768 apart in l1"),
        ("--eps 4/255 --batch-size 0", "--batch-size is 0, but must be greater than 0"),
        (
            "--eps 4/255 --num-images 3 --images list.txt",
            "--images is 'list.txt', but num_images is given too",
        ),
        ("--eps 4/255 --images none.txt", "none.txt"),
    ],
)
def test_bad_input_is_one_line(
    words: str, says: str, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    start = ["attack", str(made), "--attack", "autoattack", *words.split()]
    code = main([*start, "--output", str(tmp_path / "out")], CPU, program="p")
    err = capfd.readouterr().err
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_flags_of_autoattack_are_refused_for_pgd(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert main(["attack", str(made), "--eps", "4/255", "--version", "standard"], CPU, program="p") == 2
    assert "--version does not belong to this attack; drop it" in capfd.readouterr().err
