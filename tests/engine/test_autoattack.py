"""AutoAttack as an evaluation: rows are complete and the same however it is interrupted and whoever shares the work."""

import json
import re
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from bits.environment import Environment, open_environment
from data.index import load_index
from data.loader import eval_loader
from data.transform import EvalTransform
from engine import autoattack, lane_state
from engine.autoattack import block_size, run_autoattack
from engine.block_attack import stream_key
from engine.chosen import chosen
from engine.cli import Launch as Where
from engine.cli import main
from engine.eval_fields import AutoAttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.ledger import LedgerWriter, Verdict, read_ledger
from engine.stop import Stopped
from engine.verdict import weights_hash
from robust import versions
from robust.apgd import Apgd
from robust.autoattack import autoattack as attack_by_hand
from robust.fab import Fab
from robust.square import Square
from robust.versions import Part, Version

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
CPU = Where(backend="cpu")
SIZE, LANES, NUM = 16, 8, 24
EPS = 20 / 255
COMPONENTS = ("clean", "apgd-ce", "apgd-t", "fab-t", "square")


def short(norm: str, num_classes: int) -> Version:
    """`standard` with budgets for a test."""
    parts = (
        Part(component=Apgd(loss="ce", iterations=4)),
        Part(component=Apgd(loss="dlr-targeted", iterations=5), targets=2),
        Part(component=Fab(iterations=3), targets=2),
        Part(component=Square(queries=30)),
    )
    return Version(id="short", parts=parts)


class NearestMean(nn.Module):
    """Logits are minus the squared distances to the mean image of each class; counts what it is asked."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.num_calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.num_calls += 1
        return -(image[:, None] - self.means).square().sum(dim=(2, 3, 4)) / 10


@pytest.fixture(scope="module")
def images(digits: Path) -> tuple[Tensor, Tensor]:
    """All of digits/val: float32 (359,3,16,16) in [0,1], and labels."""
    (batch,) = eval_loader(
        load_index(digits / "val"),
        keys=None,
        global_batch=359,
        rank=0,
        world_size=1,
        image_size=SIZE,
        resize=EvalTransform(mode="squash"),
        num_workers=0,
        seed=0,
    )
    return batch.image.float() / 255, batch.label


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> AutoAttackEval:
    monkeypatch.setitem(versions.VERSIONS, "short", short)  # type: ignore[arg-type]
    return AutoAttackEval(
        attack="autoattack", norm="linf", eps=EPS, version="short", num_images=NUM, batch_size=LANES
    )


@pytest.fixture
def evaluator(digits: Path, images: tuple[Tensor, Tensor], tmp_path: Path) -> Evaluator:
    image, label = images
    model = NearestMean(torch.stack([image[label == c].mean(0) for c in range(10)]))
    return Evaluator(
        env=open_environment("cpu"),
        model=model,
        weights_sha256=weights_hash(model.state_dict()),
        index=load_index(digits / "val"),
        transform=EvalTransform(mode="squash"),
        suite="clean",
        weights="raw",
        image_size=SIZE,
        batch_size=50,
        num_workers=0,
        seed=7,
        ledger=tmp_path / "run/ledger",
        recipe="0" * 16,
    )


def rows_of(evaluator: Evaluator, result: dict[str, Any]) -> dict[tuple[str, str], Verdict]:
    """By image and component; margins to five digits, for a verdict may be had in another batch."""
    rows = read_ledger(evaluator.ledger).rows(result["evaluation"])
    return {(row.key, row.component): row._replace(margin=float(f"{row.margin:.3g}")) for row in rows}


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


def replace_entry(entry: AutoAttackEval, **changes: Any) -> AutoAttackEval:
    return entry.model_copy(update=changes)


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


def num_calls(evaluator: Evaluator) -> int:
    assert isinstance(evaluator.model, NearestMean)
    return evaluator.model.num_calls


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
    monkeypatch.setattr(autoattack, "KEEP_LANES_S", 0.0 if keeps_lanes else 1e9)
    monkeypatch.setattr(lane_state, "_MOST_SHARE", 1e9)
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


class Together:
    """An environment of two processes, each a thread here."""

    def __init__(self) -> None:
        self.wall, self.said = threading.Barrier(2, timeout=60), [0, 0]

    def env(self, rank: int) -> Environment:
        alone = open_environment("cpu")
        return SimpleNamespace(  # type: ignore[return-value]
            rank=rank,
            world_size=2,
            num_devices=1,
            feed=alone.feed,
            cut=alone.cut,
            barrier=self.wall.wait,
            agree=lambda value: self.agree(rank, value),
        )

    def agree(self, rank: int, value: int) -> int:
        self.said[rank] = value
        self.wall.wait()
        largest = max(self.said)
        self.wall.wait()
        return largest


def in_two(evaluator: Evaluator, entry: AutoAttackEval, *stops: Callable[[], bool]) -> list[Any]:
    """What the two processes return or raise."""
    together, found = Together(), [None, None]

    def work(rank: int) -> None:
        stop = stops[rank] if stops else lambda: False
        try:
            own = replace(evaluator, env=together.env(rank), stop_asked=stop)
            found[rank] = run_autoattack(own, entry)  # type: ignore[call-overload]
        except Stopped as stopped:
            found[rank] = stopped  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


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


@pytest.fixture(scope="module")
def made(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 updates on 70 digits, which are also what it is judged on."""
    root = tmp_path_factory.mktemp("autoattack")
    tree = {
        "data": {
            "train": str(few_digits),
            "val": str(few_digits),
            "image_size": SIZE,
            "num_workers": 0,
            "flip": 0.0,
            "scale": [0.8, 1.0],
        },
        "model": {"name": "small_cnn", "norm_stats": "ghost:14", "mean": [0.5] * 3, "std": [0.5] * 3},
        "optim": {"lr": 3e-3},
        "run": {"epochs": 6, "batch_size": 14},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert main(["train", str(root / "recipe.yaml"), "--output", str(root / "run")], CPU, program="p") == 0
    return root / "run"


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
        ("--norm l1 --eps 4/255", "--norm is 'l1', but must be 'linf' or 'l2'"),
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
