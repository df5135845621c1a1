"""A run that was killed or stopped, and started again, ends with the bits of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import latest_checkpoint, list_checkpoints
from data.index import load_index
from data.order import Cursor
from engine.build import Layout
from engine.loading import build_train_loader
from engine.recipe import load_recipe

ROOT = Path(__file__).parents[2]
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
BACKENDS = ["cpu", "xla", CUDA]
NUM_UPDATES = 40  # 5 epochs of 8; 70 images leave a tail of 6 that every epoch drops
UPDATES_PER_EPOCH, BATCH = 8, 8
# Kills come before the last quarter of a run, or a busy machine would find it finished.
LAST_KILL = NUM_UPDATES - 12
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1"},
    "model": {"name": "small_cnn", "norm_stats": "ghost:4", "drop_path": 0.5},
    "optim": {"lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "ema": 0.9, "clip_norm": 1.0},
    "objective": {
        "kind": "adversarial",
        "smoothing": 0.1,
        "mixup": 0.8,
        "attack": {"norm": "linf", "eps": "16/255", "step_size": "16/255", "steps": 1, "clean_prob": 0.2},
        "warmup": {
            "magnitude": [[0, 1], [2, 9]],
            "cutmix": [[0, 0.0], [1, 1.0]],
            "eps": [[0, "4/255"], [2, "16/255"]],
        },
    },
    "evals": [],
    "run": {"epochs": 5, "batch_size": BATCH, "report_every": 1, "checkpoint_every": 3},
}


@pytest.fixture(scope="module")
def recipe(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with all that a resumption can get wrong, on 70 images."""
    path = tmp_path_factory.mktemp("resume") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}))
    return path


@pytest.fixture(autouse=True)
def _needs_its_device(request: pytest.FixtureRequest) -> None:
    """`-m slow` also selects what is marked gpu, and the launcher would take the cpu where there is none."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("backend") == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


class Process:
    """A launcher in a process group of its own, and what it writes to the log from here on."""

    def __init__(self, backend: str, recipe: Path, output: Path, *words: str, processes: int = 1) -> None:
        launcher = "launch_xla.py" if backend == "xla" else "launch_gpu.py"
        flags = ["--cpu"] * (backend == "cpu") + ["--num-processes", str(processes)] * (processes > 1)
        command = [sys.executable, str(ROOT / launcher), *flags, "train", str(recipe), *words]
        if backend == "cuda":
            command.append("run.deterministic=true")
        outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        # Unoptimised code is XLA all the same and compiles in a third of the time.
        flags_xla = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
        environment = outer | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags_xla}
        self.log = output / "log.jsonl"
        self._seen = len(self.log.read_text().splitlines()) if self.log.exists() else 0
        self._errors = output.with_suffix(".stderr")
        with open(self._errors, "w") as errors:
            self.process = subprocess.Popen(
                [*command, "--output", str(output), "--resume", "auto"],
                env=environment,
                stdout=errors,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,
            )

    def entries(self) -> list[dict[str, Any]]:
        """What this process has logged by now."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines(keepends=True)[self._seen :]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for(self, step: int) -> int:
        """Waits until `step` is reported (a start counts as its step); the step that was."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            reached = max((entry["step"] for entry in self.entries()), default=-1)
            if reached >= step:
                return reached
            assert self.process.poll() is None, f"ended before step {step}: {self.errors()}"
            time.sleep(0.002)
        raise AssertionError(f"step {step} was not reached in time: {self.errors()}")

    def end(self, number: signal.Signals | None = None, *, group: bool = False) -> int:
        """Sends the signal, if one is given, and waits for the exit code."""
        if number is not None:
            os.killpg(self.process.pid, number) if group else self.process.send_signal(number)
        return self.process.wait(timeout=240)

    def errors(self) -> str:
        return self._errors.read_text()[-2000:]


def finish(backend: str, recipe: Path, output: Path, *words: str) -> Process:
    process = Process(backend, recipe, output, *words)
    assert process.end() == 0, process.errors()
    assert process.entries()[0]["backend"] == backend
    return process


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> "Uninterrupted":
    return Uninterrupted(recipe, tmp_path_factory.mktemp("uninterrupted"))


class Uninterrupted:
    """The folder of a run that was left alone, made once a backend."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder

    def __call__(self, backend: str) -> Path:
        if not (self._folder / backend).exists():
            finish(backend, self._recipe, self._folder / backend)
        return self._folder / backend


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in items:
            yield from leaves(entry, f"{path}/{key}")
    else:
        yield path, value


def final_state(output: Path) -> dict[str, Any]:
    found = latest_checkpoint(output / "checkpoints")
    assert found is not None
    assert found[0].step == NUM_UPDATES
    return dict(leaves(found[1]))


def assert_same_bits(output: Path, reference: Path) -> None:
    """Weights, average, optimizer and position, every tensor, bit for bit."""
    found, wanted = final_state(output), final_state(reference)
    assert found.keys() == wanted.keys()
    parts = {name.split("/")[1] for name in found}
    assert {"model", "optimizer", "ema", "step", "epoch", "consumed"} <= parts, parts
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all(), name
            assert torch.equal(found[name], value), f"{name}: {(found[name] - value).abs().max()}"
        else:
            assert found[name] == value, name


def kill_and_resume(backend: str, recipe: Path, output: Path, num_kills: int) -> list[int]:
    """The steps that were last reported before each of `num_kills` kills.

    Then the run is left to its end, with another number of workers.
    """
    rng = random.Random(f"kills {backend} {num_kills}")
    reach = 2 * LAST_KILL // num_kills  # so that the kills spread over the run
    kills = []
    for _ in range(num_kills):
        process = Process(backend, recipe, output)
        resumed = process.wait_for(0)
        process.wait_for(rng.randint(resumed, max(resumed, min(resumed + reach, LAST_KILL))))
        time.sleep(rng.uniform(0.0, 0.08))  # anywhere in a step, a report or a checkpoint
        assert process.end(signal.SIGKILL, group=True) == -signal.SIGKILL, "ended before it was killed"
        kills.append(max(entry["step"] for entry in process.entries()))
    finish(backend, recipe, output, "data.num_workers=1")
    return kills


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_three_times(backend: str, recipe: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    kills = kill_and_resume(backend, recipe, tmp_path / "run", num_kills=3)
    assert max(kills) > 3, f"no kill came after a checkpoint: {kills}"
    assert_same_bits(tmp_path / "run", uninterrupted(backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_twenty_times(
    backend: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")  # the code that users get
    finish(backend, recipe, tmp_path / "reference")
    kills = kill_and_resume(backend, recipe, tmp_path / "run", num_kills=20)
    print(f"{backend}: killed after steps {kills}")
    assert_same_bits(tmp_path / "run", tmp_path / "reference")


@pytest.mark.parametrize("backend", ["cpu", pytest.param("xla", marks=pytest.mark.slow), CUDA])
def test_stopped_in_mid_epoch_and_resumed_with_other_workers(
    backend: str, recipe: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    # No checkpoint but that of the stop.
    process = Process(backend, recipe, tmp_path / "run", "run.checkpoint_every=1000")
    process.wait_for(9)
    assert process.end(signal.SIGTERM) == 75, process.errors()
    stop = process.entries()[-1]
    assert stop["event"] == "stop"
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    assert found[0].step == stop["step"] >= 9, "the state is saved where the run stopped"
    assert stop["step"] % UPDATES_PER_EPOCH, "chance put the stop on an epoch's end; choose another step"
    resumed = finish(backend, recipe, tmp_path / "run", "data.num_workers=2")
    start = resumed.entries()[0]
    assert (start["event"], start["resumed"], start["step"]) == ("start", True, stop["step"])
    reported = [entry["step"] for entry in resumed.entries() if entry["event"] == "train"]
    assert reported == list(range(stop["step"] + 1, NUM_UPDATES + 1))
    assert_same_bits(tmp_path / "run", uninterrupted(backend))


def test_two_processes_resumed_as_one(recipe: Path, tmp_path: Path) -> None:
    process = Process("cpu", recipe, tmp_path / "run", "run.checkpoint_every=1000", processes=2)
    process.wait_for(9)
    assert process.end(signal.SIGTERM) == 75, process.errors()
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    step, cursor = found[0].step, Cursor(found[1]["epoch"], found[1]["consumed"])
    assert cursor == (step // UPDATES_PER_EPOCH, step % UPDATES_PER_EPOCH * BATCH)
    finish("cpu", recipe, tmp_path / "run")
    assert final_state(tmp_path / "run")["/epoch"] == 5
    whole = global_batches(recipe, Cursor(0, 0), world_size=2)
    assert len(whole) == NUM_UPDATES
    assert global_batches(recipe, cursor, world_size=1) == whole[step:]


def global_batches(recipe: Path, start: Cursor, *, world_size: int) -> list[tuple[Any, ...]]:
    """Key, seed, label, draws and pixels of each global batch from `start` on, and the cursor behind it."""
    plan = load_recipe(recipe)
    layout = Layout(global_batch=BATCH, per_process=BATCH // world_size, per_device=BATCH // world_size)
    environments = [SimpleNamespace(rank=rank, world_size=world_size) for rank in range(world_size)]
    index = load_index(plan.data.train)
    loaders: list[Any] = [
        build_train_loader(plan, environment, index, layout=layout, start=start)  # type: ignore[arg-type]
        for environment in environments
    ]
    batches = []
    for shares in zip(*loaders, strict=True):
        cursors, parts = zip(*shares, strict=True)
        assert len(set(cursors)) == 1
        columns = [torch.cat(column).numpy().tobytes() for column in zip(*parts, strict=True)]
        batches.append((cursors[0], *columns))
    return batches


def test_torn_newest_checkpoint_and_leftovers_of_a_kill(
    recipe: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    reference = uninterrupted("cpu")
    shutil.copytree(reference, tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run/checkpoints")[-1]
    assert newest.name == f"step-{NUM_UPDATES:08d}.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    leftover = newest.with_name(f".{newest.name}.99999.part")
    leftover.write_bytes(b"half a checkpoint")
    process = finish("cpu", recipe, tmp_path / "run")
    start = process.entries()[0]
    assert (start["resumed"], start["step"]) == (True, NUM_UPDATES - 1)
    assert "passed over" in process.errors()
    assert "torn or altered" in process.errors()
    assert_same_bits(tmp_path / "run", reference)
    assert not leftover.exists(), "a killed write leaves its temporary file; the next save removes it"
