"""Evaluation judges every image exactly once, whoever shares the work and however often it is interrupted."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from bits.environment import Environment, open_environment
from bits.later import LaterQueue
from data.batch import Batch
from data.index import load_index
from data.loader import eval_loader
from data.order import hash64
from data.shards import make
from data.transform import EvalTransform
from engine.eval_fields import AttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.ledger import LedgerWriter, Verdict, read_ledger
from engine.stop import Stopped
from engine.training_attack import ATTACK_STREAM
from engine.verdict import weights_hash
from robust.pgd import pgd

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
NUM_IMAGES = 359  # of digits/val; no batch size below divides it
SIZE = 16
CLEAN = SuiteEval(suite="clean")
EPS, STEP = 24 / 255, 8 / 255
PGD = AttackEval(attack="pgd", norm="linf", eps=EPS, step_size=STEP, steps=4)


# ---- real processes


@pytest.fixture(scope="module")
def run_folder(digits: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some 20 updates: right on some of the digits and wrong on others."""
    folder = tmp_path_factory.mktemp("evaluate")
    recipe = {
        "data": {"train": str(digits / "train"), "image_size": SIZE, "num_workers": 0, "scale": [0.8, 1.0]},
        "model": {"name": "small_cnn", "norm_stats": "ghost:16"},
        "optim": {"lr": 3e-3},
        "run": {"epochs": 1, "batch_size": 64, "max_steps": 20},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = launch("gpu", "--cpu", "train", folder / "r.yaml", "--output", folder / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run"


@pytest.fixture(scope="module")
def layouts(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 359 images in one shard and in four."""
    four = tmp_path_factory.mktemp("layout") / "val"
    make(digits / "images/val", four, split="val", samples_per_shard=100)
    assert len(load_index(four).shards) == 4
    return {"one": digits / "val", "four": four}


@pytest.fixture(scope="module")
def judged(
    run_folder: Path, layouts: dict[str, Path], launch: Launch, tmp_path_factory: pytest.TempPathFactory
):  # type: ignore[no-untyped-def]
    """judged(ranks, workers, layout) evaluates in that many processes; the rows, by image."""

    def evaluate(ranks: int, workers: int, layout: str) -> dict[str, Verdict]:
        folder = tmp_path_factory.mktemp("judged")
        shutil.copytree(run_folder, folder / "run")
        recipe = folder / "run/recipe.yaml"
        text, found = re.subn(r"num_workers: \d+", f"num_workers: {workers}", recipe.read_text())
        assert found == 1
        recipe.write_text(text)
        words = ["eval", folder / "run", "--suite", "clean", "--data", layouts[layout], "--batch-size", "50"]
        flags = ["--cpu", *(["--num-processes", str(ranks)] if ranks > 1 else [])]
        done = launch("gpu", *flags, *words, "--output", folder / "out")
        assert done.returncode == 0, done.stderr[-2000:]
        files = sorted(path.name for path in (folder / "out/ledger").glob("*.sqlite"))
        assert files == [f"rank-{rank}.sqlite" for rank in range(ranks)]
        book = read_ledger(folder / "out/ledger")
        (identity,) = book.evaluations()
        rows = list(book.rows(identity))
        assert len(rows) == NUM_IMAGES
        return {row.key: row for row in rows}

    return evaluate


@pytest.fixture(scope="module")
def alone(judged: Callable[..., dict[str, Verdict]]) -> dict[str, Verdict]:
    return judged(1, 0, "one")


@pytest.mark.parametrize(
    ("ranks", "workers", "layout"),
    [
        (1, 3, "four"),
        (2, 1, "one"),
        (3, 0, "four"),
        pytest.param(2, 1, "four", marks=pytest.mark.slow),
        pytest.param(3, 2, "one", marks=pytest.mark.slow),
    ],
)
def test_any_layout_gives_the_same_verdicts(
    ranks: int,
    workers: int,
    layout: str,
    judged: Callable[..., dict[str, Verdict]],
    alone: dict[str, Verdict],
    layouts: dict[str, Path],
) -> None:
    rows = judged(ranks, workers, layout)
    index = load_index(layouts[layout])
    assert set(rows) == {index.name(position) for position in range(NUM_IMAGES)}
    assert len(rows) == NUM_IMAGES
    num_correct = sum(row.correct for row in alone.values())
    assert 0.2 < num_correct / NUM_IMAGES < 0.99, "a model that is always right or wrong would show nothing"
    assert sum(row.correct for row in rows.values()) == num_correct
    different = [key for key, row in rows.items() if row.prediction != alone[key].prediction]
    assert different == []


# ---- in this process


class NearestMean(nn.Module):
    """Logits are minus the squared distances to the mean image of each class; counts what it is asked."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        # Scaled down, or the cross-entropy of an attack would be exactly 0 with a gradient of 0.
        return -(image[:, None] - self.means).square().sum(dim=(2, 3, 4)) / 10


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


@pytest.fixture(scope="module")
def images(digits: Path) -> tuple[Tensor, Tensor]:
    """All of digits/val in its order: float32 (359,3,16,16) in [0,1], and labels."""
    loader = eval_loader(
        load_index(digits / "val"),
        keys=None,
        global_batch=NUM_IMAGES,
        rank=0,
        world_size=1,
        image_size=SIZE,
        resize=EvalTransform(mode="squash"),
        num_workers=0,
        seed=0,
    )
    (batch,) = loader
    return batch.image.float() / 255, batch.label


@pytest.fixture
def evaluator(env: Environment, digits: Path, images: tuple[Tensor, Tensor], tmp_path: Path) -> Evaluator:
    image, label = images
    model = NearestMean(torch.stack([image[label == c].mean(0) for c in range(10)]))
    return Evaluator(
        env=env,
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
        ledger=tmp_path / "ledger",
        recipe="0" * 16,
    )


def model_of(evaluator: Evaluator) -> NearestMean:
    assert isinstance(evaluator.model, NearestMean)
    return evaluator.model


def rows_of(evaluator: Evaluator, result: dict[str, Any], component: str) -> list[Verdict]:
    return list(read_ledger(evaluator.ledger).rows(result["evaluation"], component))


@pytest.mark.parametrize("batch_size", [64, 50, 359, 400])
def test_verdicts_are_the_models_and_padding_has_none(
    batch_size: int, evaluator: Evaluator, images: tuple[Tensor, Tensor]
) -> None:
    image, label = images
    model = model_of(evaluator)
    model.train()
    result = replace(evaluator, batch_size=batch_size).run(CLEAN)
    assert model.batches == [batch_size] * -(-NUM_IMAGES // batch_size)
    assert model.training, "the mode is put back"
    with torch.no_grad():
        predictions = model(image).argmax(1)
    rows = rows_of(evaluator, result, "clean")
    assert [row.position for row in rows] == list(range(NUM_IMAGES))
    assert [row.key for row in rows] == [evaluator.index.name(position) for position in range(NUM_IMAGES)]
    assert [row.prediction for row in rows] == predictions.tolist()
    assert [row.label for row in rows] == label.tolist()
    assert result["num_images"] == NUM_IMAGES
    assert result["num_correct"] == int((predictions == label).sum())
    assert result["top1"] == result["num_correct"] / NUM_IMAGES
    assert 0.5 < result["top1"] < 1.0


def test_attack_rows_say_what_broke_and_what_never_stood(
    evaluator: Evaluator, images: tuple[Tensor, Tensor]
) -> None:
    image, label = images
    result = evaluator.run(PGD)
    clean, attacked = rows_of(evaluator, result, "clean"), rows_of(evaluator, result, PGD.name)
    assert len(clean) == len(attacked) == NUM_IMAGES
    assert {row.broken_by for row in clean} == {None}
    for before, after in zip(clean, attacked, strict=True):
        is_broken = before.correct and not after.correct
        assert after.broken_by == (PGD.name if is_broken else None), (before, after)
    kinds = {(before.correct, after.correct) for before, after in zip(clean, attacked, strict=True)}
    assert {(True, True), (True, False), (False, False)} <= kinds, "each case is among the images"
    # The same attack by the public function: one seed per image, whatever the batch.
    seed = torch.from_numpy(hash64(7, "sample", 0, np.arange(NUM_IMAGES)).view(np.int64)) ^ ATTACK_STREAM
    wanted = pgd(evaluator.model, image, label, eps=EPS, step=STEP, steps=4, seed=seed)
    robust = [b.correct and a.correct for b, a in zip(clean, attacked, strict=True)]
    assert robust == wanted.robust.tolist()
    assert result["num_correct"] == sum(robust)
    assert result["components"]["clean"]["num_correct"] == sum(row.correct for row in clean)


class DiskFull:
    """LedgerWriter.write that fails at its `allowed + 1`th batch and notes what it wrote."""

    def __init__(self, allowed: int, real: Callable[[LedgerWriter, Iterable[Verdict]], None]) -> None:
        self.allowed, self.real = allowed, real
        self.written: list[tuple[int, str]] = []

    def write(self, writer: LedgerWriter, rows: Iterable[Verdict]) -> None:
        rows = list(rows)
        if self.allowed == 0:
            raise OSError("disk full")
        self.allowed -= 1
        self.real(writer, rows)
        self.written += [(row.position, row.component) for row in rows]


@pytest.mark.parametrize(("entry", "calls_per_batch"), [(CLEAN, 1), (PGD, 2 + PGD.steps)])
def test_interrupted_goes_on_and_judges_nothing_twice(
    entry: SuiteEval | AttackEval,
    calls_per_batch: int,
    evaluator: Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = replace(evaluator, ledger=tmp_path / "whole").run(entry)
    model = model_of(evaluator)
    disk = DiskFull(3, LedgerWriter.write)
    monkeypatch.setattr(LedgerWriter, "write", lambda writer, rows: disk.write(writer, rows))
    model.train()
    with pytest.raises(OSError, match="disk full"):
        evaluator.run(entry)
    assert model.training, "the mode is put back after an error too"
    model.batches.clear()
    disk.allowed = 1000
    result = replace(evaluator, batch_size=40).run(
        entry
    )  # another batch size: what is done is known by image
    assert len(model.batches) == calls_per_batch * -(-(NUM_IMAGES - 150) // 40)
    components = len(result["components"])
    assert len(disk.written) == len(set(disk.written)) == NUM_IMAGES * components
    assert result == whole
    model.batches.clear()
    assert evaluator.run(entry) == whole
    assert model.batches == [], "a finished evaluation asks the model nothing"


def test_what_still_waits_is_written_when_a_bad_sample_ends_the_loop(
    evaluator: Evaluator, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On cuda and XLA a report stays in flight (`later` of depth 1), and the ledger is closed behind the error."""

    def broken(*arguments: Any, **settings: Any) -> Iterator[Batch]:
        yield from islice(eval_loader(*arguments, **settings), 2)
        raise ValueError("shard 0, key 7/12: cut")

    monkeypatch.setattr(env, "_later", LaterQueue(depth=1))
    monkeypatch.setattr("engine.evaluate.eval_loader", broken)
    with pytest.raises(ValueError, match="key 7/12: cut"):
        evaluator.run(CLEAN)
    env.flush()
    (identity,) = read_ledger(evaluator.ledger).evaluations()
    assert len(read_ledger(evaluator.ledger).done(identity, "clean")) == 100


def test_a_stop_request_ends_it_between_two_batches(evaluator: Evaluator) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        replace(evaluator, stop_asked=lambda: next(asked)).run(CLEAN)
    (identity,) = read_ledger(evaluator.ledger).evaluations()
    assert len(read_ledger(evaluator.ledger).done(identity, "clean")) == 150
    assert evaluator.run(CLEAN)["num_images"] == NUM_IMAGES


def test_subset_is_fixed_and_has_an_id_of_its_own(evaluator: Evaluator) -> None:
    entry = CLEAN.model_copy(update={"num_images": 60})
    part = evaluator.run(entry)
    positions = [row.position for row in rows_of(evaluator, part, "clean")]
    assert part["num_images"] == len(set(positions)) == 60
    assert positions != list(range(60)), "the first ones are no sample of the whole"
    # Neither the seed of the run nor the model chooses the images.
    other = replace(evaluator, seed=8, weights_sha256="0" * 64)
    again = other.run(entry)
    assert [row.position for row in rows_of(other, again, "clean")] == positions
    whole = evaluator.run(CLEAN)
    smaller = evaluator.run(CLEAN.model_copy(update={"num_images": 30}))
    assert len({result["evaluation"] for result in (part, again, whole, smaller)}) == 4
    assert whole["num_images"] == NUM_IMAGES
    nested = [row.position for row in rows_of(evaluator, smaller, "clean")]
    assert set(nested) < set(positions), "a smaller subset lies inside a larger one"


def test_whatever_changes_a_verdict_changes_the_id(evaluator: Evaluator) -> None:
    def identity(judge: Evaluator, entry: SuiteEval | AttackEval) -> str:
        return str(replace(judge, batch_size=5).run(entry.model_copy(update={"num_images": 5}))["evaluation"])

    changed = [
        (evaluator, CLEAN),
        (evaluator, PGD),
        *(
            (evaluator, PGD.model_copy(update=c))
            for c in ({"eps": EPS / 2}, {"steps": 5}, {"step_size": STEP / 2})
        ),
        (evaluator, PGD.model_copy(update={"random_start": False})),
        (replace(evaluator, seed=8), PGD),
        (replace(evaluator, weights_sha256="1" * 64), PGD),
        (replace(evaluator, transform=EvalTransform(mode="center")), PGD),
        (replace(evaluator, transform=EvalTransform(mode="squash", interpolation="bilinear")), PGD),
    ]
    assert len({identity(judge, entry) for judge, entry in changed}) == len(changed)


def test_logits_are_float32_where_training_is_bf16(
    digits: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = set()

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(
                torch.randn(10, 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(0))
            )

        def forward(self, image: Tensor) -> Tensor:
            logits = F.linear(image.flatten(1), self.weight)
            dtypes.add(logits.dtype)
            return logits

    half = replace(evaluator, env=open_environment("cpu", precision="bf16"), model=Linear())
    replace(half, batch_size=10).run(PGD.model_copy(update={"num_images": 10}))
    assert dtypes == {torch.float32}
