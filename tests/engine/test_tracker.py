"""TensorBoard and wandb: the same steps and values as log.jsonl, once each, and never at the cost of the run."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from bits.checkpoint import latest_checkpoint, list_checkpoints
from engine import keeping, verb_train
from engine.cli import Launch, parse
from engine.log import RunLog, read_log
from engine.reporter import Reporter
from engine.tracker import TRAIN_SCALARS, TensorBoard, Trackers, import_wandb

LaunchFn = Callable[..., "subprocess.CompletedProcess[str]"]
NUM_UPDATES, UPDATES_PER_EPOCH = 12, 4
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1"},
    "model": {"name": "small_cnn", "norm_stats": "ghost:4", "drop_path": 0.5},
    "optim": {"lr": 2e-3, "warmup_epochs": 1},
    "objective": {
        "kind": "adversarial",
        "mixup": 0.8,
        "attack": {"norm": "linf", "eps": "16/255", "step_size": "16/255", "steps": 1},
        "warmup": {
            "magnitude": [[0, 1], [2, 9]],
            "mix_prob": [[0, 0.5]],
            "eps": [[0, "4/255"], [2, "16/255"]],
        },
    },
    "evals": [{"suite": "clean", "every": 1, "num_images": 16}],
    "run": {"epochs": 3, "batch_size": 16, "report_every": 1, "gallery_images": 0},
}


@pytest.fixture(scope="module")
def recipe(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tracked.yaml"
    shards = {"train": str(few_digits), "val": str(few_digits)}
    path.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], **shards}}))
    return path


def train(recipe: Path, output: Path, *words: str) -> list[dict[str, Any]]:
    """A run on the cpu in this process; what it logged, from its last start on."""
    arguments = parse(["train", str(recipe), *words, "--output", str(output)], "launch_gpu.py")
    assert verb_train.run(arguments, Launch(backend="cpu"))["exit_code"] == 0
    entries = read_log(output / "log.jsonl")
    starts = [i for i, entry in enumerate(entries) if entry["event"] == "start"]
    return entries[starts[-1] :]


def events(output: Path) -> EventAccumulator:
    found = EventAccumulator(str(output / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def scalars(output: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(output).Scalars(tag)]


def weights(output: Path) -> dict[str, Tensor]:
    found = latest_checkpoint(output / "checkpoints")
    assert found is not None
    return dict(found[1]["model"])


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    train(recipe, output)
    return output


# ---- TensorBoard


def test_the_curves_are_those_of_the_log(finished: Path) -> None:
    log = read_log(finished / "log.jsonl")
    reports = [entry for entry in log if entry["event"] == "train"]
    names = [name for name in TRAIN_SCALARS if name in reports[0]]
    assert {"loss", "top1", "lr", "images_per_s", "magnitude", "mix_prob", "eps"} <= set(names)
    assert not {"cutmix", "switch_prob"} & set(names), "no warm-up names them"
    for name in names:
        wanted = [(entry["step"], pytest.approx(entry[name])) for entry in reports]
        assert scalars(finished, f"train/{name}") == wanted, name
    assert [entry["step"] for entry in reports] == list(range(1, NUM_UPDATES + 1))
    judged = {entry["step"]: entry["top1"] for entry in log if entry["event"] == "eval"}
    assert list(judged) == [4, 8, 12]
    assert scalars(finished, "eval/clean") == [(step, pytest.approx(top1)) for step, top1 in judged.items()]
    tags = set(events(finished).Tags()["scalars"])
    assert tags == {f"train/{name}" for name in names} | {"eval/clean"}


def test_the_warm_up_is_that_of_the_update(finished: Path) -> None:
    reports = [entry for entry in read_log(finished / "log.jsonl") if entry["event"] == "train"]
    assert [entry["magnitude"] for entry in reports] == [1.0] * 8 + [9.0] * 4
    assert [round(entry["eps"] * 255) for entry in reports] == [4] * 8 + [16] * 4


def test_an_evaluation_is_no_training_time(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **named: Any) -> list[dict[str, Any]]:
        time.sleep(1.0)
        return []

    monkeypatch.setattr(verb_train, "measure", slow)
    reports = [entry for entry in train(recipe, tmp_path / "run") if entry["event"] == "train"]
    behind = [r["step_s"] for r in reports if r["step"] in (UPDATES_PER_EPOCH + 1, 2 * UPDATES_PER_EPOCH + 1)]
    assert len(behind) == 2
    assert max(behind) < 0.8


def test_the_exit_code_is_written_before_trackers_are_waited_for(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Trackers, "close", lambda *_: seen.append((tmp_path / "run/exit.json").exists()))
    train(recipe, tmp_path / "run", "run.max_steps=1", "evals=[]")
    assert seen[0]


def test_pictures_at_the_first_report_and_then_once_an_epoch(finished: Path) -> None:
    found = events(finished)
    pictures = {}
    for tag in ("augmented", "adversarial"):
        images = found.Images(tag)
        assert [image.step for image in images] == [1, 4, 8, 12]
        assert {(image.width, image.height) for image in images} == {(8 * 16, 16)}
        pictures[tag] = [decoded(image.encoded_image_string) for image in images]
    for clean, attacked, eps in zip(
        pictures["augmented"], pictures["adversarial"], (4, 4, 4, 16), strict=True
    ):
        assert clean.std() > 10, "a picture of something"
        # Both are rounded to bytes.
        assert 1 <= np.abs(attacked - clean).max() <= eps + 1


def decoded(png: bytes) -> "np.ndarray[Any, Any]":
    import io

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_clean_run_has_no_adversarial_pictures(recipe: Path, tmp_path: Path) -> None:
    words = ["objective.kind=clean", "objective.attack=null", "objective.warmup=null", "evals=[]"]
    train(recipe, tmp_path / "run", *words, "run.max_steps=1", "run.preview_images=3")
    found = events(tmp_path / "run")
    assert found.Tags()["images"] == ["augmented"]
    assert found.Images("augmented")[0].width == 3 * 16


def test_looking_does_not_change_the_bits(recipe: Path, finished: Path, tmp_path: Path) -> None:
    off = ["run.preview_images=0", "run.tensorboard=false"]
    train(recipe, tmp_path / "off", *off)
    assert not (tmp_path / "off/tensorboard").exists()
    wanted, found = weights(finished), weights(tmp_path / "off")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.slow
def test_looking_does_not_change_the_bits_on_xla(recipe: Path, launch: LaunchFn, tmp_path: Path) -> None:
    for name, words in {"on": [], "off": ["run.preview_images=0", "run.tensorboard=false"]}.items():
        done = launch("xla", "train", recipe, "evals=[]", *words, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
    wanted, found = weights(tmp_path / "on"), weights(tmp_path / "off")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_nothing_shows_twice_after_a_kill(recipe: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, "run.max_steps=7", "run.checkpoint_every=3", "evals=[]")
    assert scalars(run, "train/loss")[-1][0] == 7
    # As a kill -9 at step 7 would leave it: the newest checkpoint is that of step 6.
    for path in list_checkpoints(run / "checkpoints")[-1:]:
        path.unlink()
        path.with_suffix(".json").unlink()
    entries = train(recipe, run)
    assert entries[0]["step"] == 6
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert scalars(run, "train/loss") == scalars(finished, "train/loss")
    assert scalars(run, "eval/clean")[-2:] == scalars(finished, "eval/clean")[-2:]


def test_nothing_shows_twice_when_a_run_begins_anew(recipe: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe, run, "run.max_steps=3", "run.checkpoint_every=100", "evals=[]")
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    time.sleep(1.0)  # TensorBoard reads files in the order of their names, which begin with the second
    entries = train(recipe, run)
    assert (entries[0]["resumed"], entries[0]["step"]) == (False, 0)
    assert scalars(run, "train/loss") == scalars(finished, "train/loss")


def test_what_is_before_a_checkpoint_survives_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from engine.tracker import TensorBoard
board = TensorBoard(Path({str(tmp_path)!r}) / "tensorboard", step=0)
for step in range(1, 6):
    board.scalars(step, {{"train/loss": 1.0 / step}})
board.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_never_ahead_of_the_curves(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(folder: Path, step: int, *rest: Any, **words: Any) -> None:
        done.append(f"save {step}")
        save_checkpoint(folder, step, *rest, **words)

    done: list[str] = []
    save_checkpoint = keeping.save_checkpoint
    monkeypatch.setattr(keeping, "save_checkpoint", save)
    monkeypatch.setattr(TensorBoard, "flush", lambda self: done.append("flush"))
    train(recipe, tmp_path / "run", "run.checkpoint_every=2", "run.max_steps=5", "evals=[]")
    assert done == ["flush", "save 2", "flush", "save 4", "flush", "save 5"]


def test_one_writer_for_several_processes(recipe: Path, launch: LaunchFn, tmp_path: Path) -> None:
    words = ["evals=[]", "run.max_steps=2", "--output", tmp_path / "run"]
    done = launch("gpu", "--cpu", "--num-processes", "2", "train", recipe, *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    assert [step for step, _ in scalars(tmp_path / "run", "train/loss")] == [1, 2]
    images = events(tmp_path / "run").Images("augmented")
    assert [image.width for image in images] == [8 * 16], "rank 0's own"


# ---- a tracker that fails


class Failing:
    name = "Failing"

    def __init__(self) -> None:
        self.calls = 0

    def scalars(self, step: int, values: Any) -> None:
        self.calls += 1
        raise ConnectionError("no network\nand a long story")

    def images(self, step: int, name: str, image: Tensor) -> None: ...
    def flush(self) -> None: ...
    def close(self, exit_code: int) -> None: ...


class Keeping(Failing):
    name = "Keeping"

    def scalars(self, step: int, values: Any) -> None:
        self.calls += 1


def test_a_tracker_that_fails_is_given_up_with_one_line(tmp_path: Path) -> None:
    said: list[str] = []
    failing, keeping = Failing(), Keeping()
    log = RunLog(tmp_path / "log.jsonl")
    log.trackers = Trackers([failing, keeping], warn=said.append)
    for step in range(3):
        log.write("train", step=step, loss=1.0)
    log.close(exit_code=0)
    assert (failing.calls, keeping.calls) == (1, 3)
    assert said == ["Failing is given up, the run goes on without it: no network"]
    assert len(read_log(tmp_path / "log.jsonl")) == 3


def test_a_folder_that_cannot_be_written_costs_the_curves_only(
    recipe: Path, tmp_path: Path, capfd: Any
) -> None:
    run = tmp_path / "run"
    train(recipe, run, "run.max_steps=1", "evals=[]", "run.tensorboard=false")
    (run / "tensorboard").write_text("a file is in the way")
    train(recipe, run, "run.max_steps=4", "evals=[]")
    assert capfd.readouterr().err.count("TensorBoard is given up, the run goes on without it") == 1
    assert latest_checkpoint(run / "checkpoints")[0].step == 4  # type: ignore[index]


def test_a_diverged_loss_is_drawn_as_it_is(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.trackers = Trackers([TensorBoard(tmp_path / "tensorboard", step=0)])
    log.write("train", step=1, loss=math.nan)
    log.close(exit_code=0)
    assert math.isnan(scalars(tmp_path, "train/loss")[0][1])


# ---- wandb


class FakeWandb(ModuleType):
    """What of the package is used: init, log, Image, finish."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished: list[int] = []
        self.Image = np.shape

    def init(self, **words: Any) -> Any:
        self.inits.append(words)
        return SimpleNamespace(log=self._log, finish=lambda exit_code: self.finished.append(exit_code))

    def _log(self, values: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, values))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_what_the_log_says(recipe: Path, wandb: FakeWandb, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["run.wandb=digits", "run.tensorboard=false"]
    entries = train(recipe, run, *words, "run.max_steps=4")
    reports = [entry for entry in entries if entry["event"] == "train"]
    (init,) = wandb.inits
    assert (init["project"], init["name"], init["resume"], init["dir"]) == (
        "digits",
        "tracked",
        "allow",
        str(run),
    )
    assert init["config"]["optim"]["lr"] == 2e-3
    assert init["config"]["run"]["epochs"] == 3
    json.dumps(init["config"])
    losses = [(step, values["train/loss"]) for step, values in wandb.logged if "train/loss" in values]
    assert losses == [(entry["step"], entry["loss"]) for entry in reports]
    assert [step for step, values in wandb.logged if "eval/clean" in values] == [4]
    pictures = [(step, *values.items()) for step, values in wandb.logged if "adversarial" in values]
    assert pictures[0] == (1, ("adversarial", [(16, 16, 3)] * 8))
    steps = [step for step, _ in wandb.logged]
    assert steps == sorted(steps), "wandb drops what is older than its newest step"
    assert wandb.finished == [0]
    train(recipe, run, *words)
    assert wandb.inits[1]["id"] == init["id"], "the same run goes on"
    train(recipe, tmp_path / "other", *words, "run.max_steps=1", "evals=[]")
    assert wandb.inits[2]["id"] != init["id"]


def test_wandb_learns_how_the_run_ended(
    recipe: Path, wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Any, *rest: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, *rest)

    original = Reporter.report
    monkeypatch.setattr(Reporter, "report", stop)
    arguments = parse(
        ["train", str(recipe), "run.wandb=a", "--output", str(tmp_path / "run")], "launch_gpu.py"
    )
    assert verb_train.run(arguments, Launch(backend="cpu"))["exit_code"] == 75
    assert wandb.finished == [75]


def test_wandb_that_is_missing_is_said_before_anything_is_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"^run\.wandb .* not installed; pip install wandb, or drop the field$"
    ):
        train(recipe, tmp_path / "run", "run.wandb=digits")
    assert not (tmp_path / "run").exists()


def test_a_folder_called_wandb_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="not installed"):
        import_wandb()
    sys.modules.pop("wandb", None)
