"""Updates that are not finite: left out without a trace, and a run that has too many of them goes back or stops."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from bits.checkpoint import list_checkpoints, load_checkpoint
from bits.ema import Ema
from bits.environment import Environment, open_environment
from data.batch import Batch
from engine.guard import Guard
from engine.knobs import pack_knobs
from engine.log import read_log
from engine.optim import SGD, AdamW, TensorLrOptimizer
from engine.recipe import parse_recipe
from engine.rollback import reseeded
from engine.step import TrainStep
from tests.engine.one_step import ATTACK, cnn, make_batch, make_step

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def optimizer_of(name: str, model: nn.Module) -> TensorLrOptimizer:
    if name == "adamw":
        return AdamW(model.parameters(), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    return SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=0.1)


def guarded_step(env: Environment, name: str, *, limit: int = 3, **changes: Any) -> TrainStep:
    model = cnn()
    step = make_step(env, model, **changes)
    step.state.optimizer = optimizer_of(name, model)
    step.state.ema = Ema(model, 0.9)
    step.guard = Guard(model, limit=limit, device=env.device)
    return step


def go(step: TrainStep, number: int, *, scale: float = 1.0) -> None:
    """One update on batch `number`; every logit times `scale`."""
    handle = step.state.model.register_forward_hook(lambda module, args, out: out * scale)
    step(make_batch(seed=number), pack_knobs(lr=0.01, eps=8 / 255, step_size=8 / 255, step=number))
    handle.remove()


def poison(step: TrainStep, number: int) -> None:
    """The same with activations that are not finite, so that running statistics break too."""
    first = next(m for m in step.state.model.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_hook(lambda module, args, out: out * float("nan"))
    step(make_batch(seed=number), pack_knobs(lr=0.01, eps=8 / 255, step_size=8 / 255, step=number))
    handle.remove()


def tensors(step: TrainStep) -> dict[str, Tensor]:
    """Weights, statistics, average and optimizer, without the counts of batches."""
    assert step.state.ema is not None
    optimizer = step.state.optimizer.state_dict()
    found = {f"model.{n}": t for n, t in step.state.model.state_dict().items()}
    found |= {f"ema.{n}": t for n, t in step.state.ema.module.state_dict().items()}
    found |= {f"state.{i}.{n}": t for i, s in optimizer["state"].items() for n, t in s.items()}
    found |= {f"group.{n}": t for n, t in optimizer["param_groups"][0].items() if n == "step"}
    return {n: t.clone() for n, t in found.items() if not n.endswith("num_batches_tracked")}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "pgd"])
def test_a_bad_update_leaves_no_trace(name: str, attack: Any, env: Environment) -> None:
    step, straight = (guarded_step(env, name, attack=attack) for _ in range(2))
    poison(step, 0)  # the very first, where Adam's corrections divide by zero
    for number in (1, 2):
        go(step, number)
        go(straight, number)
    before = tensors(step)
    assert_equal(before, tensors(straight))
    poison(step, 3)
    go(step, 4, scale=float("inf"))
    assert_equal(tensors(step), before)
    assert all(t.isfinite().all() for t in before.values())
    go(step, 5)
    go(straight, 5)
    assert_equal(tensors(step), tensors(straight))


def test_a_guard_changes_no_bit_of_a_finite_run(env: Environment) -> None:
    guarded, free = (guarded_step(env, "adamw", attack=ATTACK, clip=None) for _ in range(2))
    free.guard = None
    for number in range(3):
        go(guarded, number)
        go(free, number)
    assert_equal(tensors(guarded), tensors(free))


def test_a_whole_group_of_micro_batches_is_left_out(env: Environment) -> None:
    step = guarded_step(env, "adamw", accumulate=2)
    go(step, 0)
    go(step, 1)
    before = tensors(step)
    poison(step, 2)
    go(step, 3)
    assert_equal(tensors(step), before)
    assert step.guard is not None
    assert step.guard.read() == (1, 3, 1)


def test_streaks_are_counted_and_nothing_moves_behind_the_limit(env: Environment) -> None:
    step = guarded_step(env, "sgd", limit=2)
    assert step.guard is not None
    poison(step, 0)
    assert step.guard.read() == (1, 0, 1)
    go(step, 1)
    assert step.guard.read() == (0, 0, 1)
    for number in (7, 8):
        poison(step, number)
    step.guard.reset_skipped_()
    before = tensors(step)
    go(step, 9)
    assert step.guard.read() == (2, 7, 1)
    assert_equal(tensors(step), before)


def test_another_way_through_the_same_data_has_other_seeds() -> None:
    batch = make_batch()
    first, second = reseeded(batch, 1), reseeded(batch, 2)
    assert reseeded(batch, 0) is batch
    assert not (set(first.seed.tolist()) & set(second.seed.tolist()) & set(batch.seed.tolist()))
    for name in set(Batch._fields) - {"seed"}:
        assert torch.equal(getattr(first, name), getattr(batch, name))
    assert torch.equal(reseeded(batch, 1).seed, first.seed)


@pytest.mark.parametrize(
    ("health", "words"),
    [
        ({"every": 10}, "run.health.every is 10, but objective.attack is null"),
        ({"rollback": True}, "run.health.every is null"),
        ({"max_skips": 0}, "run.health.max_skips"),
        ({"rollback_lr": 0.0}, "run.health.rollback_lr"),
        ({"max_gap": 2.0}, "run.health.max_gap"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(health: dict[str, Any], words: str) -> None:
    tree = copy.deepcopy(RECIPE) | {"objective": {"kind": "clean"}}
    tree["data"] |= {"train": "unused"}
    tree["run"] |= {"health": health}
    with pytest.raises(ValueError, match=words.replace(".", r"\.")) as error:
        parse_recipe(tree)
    assert "\n" not in str(error.value)


# ---- runs

UPDATES = 24  # 3 epochs of 8
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0},
    "model": {"name": "small_cnn", "drop_path": 0.2},
    "optim": {"lr": 2e-3, "ema": 0.9},
    "objective": {
        "kind": "adversarial",
        "attack": {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1},
    },
    "evals": [],
    "run": {
        "epochs": 3,
        "batch_size": 8,
        "report_every": 4,
        "checkpoint_every": 5,
        "keep_checkpoints": 10,
        "health": {"max_skips": 3},
    },
}
# Breaks the loss of the updates from BAD_FROM (counted from 0) on, until the run has gone back BAD_TIMES times.
POISONED = """
import os, sys
sys.path.insert(0, {root!r})
import engine.step as step
from engine.cli import Launch, main
from engine.loop import Loop

make, loops = step.make_objective, []
init = Loop.__post_init__
Loop.__post_init__ = lambda self: (init(self), loops.append(self))[0]

def poisoned(*args):
    inner = make(*args)
    def objective(forward, inputs):
        losses = inner(forward, inputs)
        bad = loops[0].state.step >= {start} and loops[0].health.rollbacks < {times}
        return losses._replace(loss=losses.loss * (float("nan") if bad else 1.0))
    return objective

step.make_objective = poisoned
sys.exit(main(sys.argv[1:], Launch(backend={backend!r}), program="launch_gpu.py"))
"""


class Runs:
    """Runs of the recipe whose losses break."""

    def __init__(self, few_digits: Path, folder: Path) -> None:
        self.folder, self.recipe = folder, folder / "tiny.yaml"
        tree = RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}
        self.recipe.write_text(yaml.safe_dump(tree))

    def start(
        self, name: str, *words: str, start: int = 12, times: int = 1, backend: str = "cpu"
    ) -> "subprocess.Popen[str]":
        code = POISONED.format(root=str(ROOT), start=start, times=times, backend=backend)
        outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        flags = {
            "PJRT_DEVICE": "CPU",
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", self.recipe, *words, "--output", self.folder / name],
            env=outer | flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def finish(self, name: str, *words: str, code: int = 0, **settings: Any) -> str:
        process = self.start(name, *words, **settings)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == code, said[-2000:]
        return said

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        return [e for e in read_log(self.folder / name / "log.jsonl") if e["event"] == event]

    def state(self, name: str) -> dict[str, Any]:
        return load_checkpoint(self.folder / name / f"checkpoints/step-{UPDATES:08d}.pt")


@pytest.fixture
def runs(few_digits: Path, tmp_path: Path) -> Runs:
    return Runs(few_digits, tmp_path)


def assert_same_state(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("model", "ema"):
        for name, tensor in wanted[part].items():
            assert torch.equal(found[part][name], tensor), f"{part} {name}"
    for index, entry in wanted["optimizer"]["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(found["optimizer"]["state"][index][name], tensor), f"{index} {name}"
    assert found["health"]["rollbacks"] == wanted["health"]["rollbacks"]


@pytest.mark.parametrize("backend", ["cpu", "xla"])
def test_a_run_goes_back_to_its_last_healthy_checkpoint(backend: str, runs: Runs) -> None:
    said = runs.finish("run", backend=backend)
    (back,) = runs.events("run", "rollback")
    assert back["step"] == 10  # of the checkpoints at 5, 10 and 15, the last before update 13
    assert back["rollbacks"] == 1
    assert "not finite in 3 updates in a row; back to step 10" in said
    state = runs.state("run")
    assert state["step"] == UPDATES
    assert all(t.isfinite().all() for t in state["model"].values())
    lr = {e["step"]: e["lr"] for e in runs.events("run", "train")}
    assert lr[UPDATES] < 0.6 * 2e-3, "half the rate after one rollback"
    assert state["health"]["counts"].tolist()[0] == 0


def test_the_end_does_not_depend_on_reports_stops_and_kills(runs: Runs) -> None:
    runs.finish("straight")
    runs.finish("often", "run.report_every=1")
    assert_same_state(runs.state("often"), runs.state("straight"))
    process = runs.start("killed")
    log = runs.folder / "killed/log.jsonl"
    _wait(process, lambda: log.exists() and '"step": 9' in log.read_text())
    process.kill()
    process.communicate()
    runs.finish("killed")
    assert_same_state(runs.state("killed"), runs.state("straight"))
    # Stopped while updates are being left out: that checkpoint is none to go back to.
    process = runs.start("stopped", "run.report_every=1", times=9)
    log = runs.folder / "stopped/log.jsonl"
    _wait(process, lambda: log.exists() and '"step": 11,' in log.read_text())
    process.send_signal(signal.SIGTERM)
    process.communicate()
    runs.finish("stopped")
    assert_same_state(runs.state("stopped"), runs.state("straight"))


def _wait(process: "subprocess.Popen[str]", done: Any) -> None:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not done():
        time.sleep(0.005)
    assert process.poll() is None, "ended before it was stopped"


def test_after_the_last_rollback_the_run_stops_and_names_the_steps(runs: Runs) -> None:
    said = runs.finish("run", "run.health.max_rollbacks=1", times=99, code=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert "updates 13 to " in line
    assert "after 1 rollbacks" in line
    assert len(runs.events("run", "rollback")) == 1
    newest = load_checkpoint(list_checkpoints(runs.folder / "run/checkpoints")[-1])
    assert newest["step"] > 12
    assert all(t.isfinite().all() for t in newest["model"].values())


def test_without_a_checkpoint_there_is_no_way_back(runs: Runs) -> None:
    said = runs.finish("run", start=0, code=2)
    assert "no healthy checkpoint to go back to" in said


def test_a_few_bad_updates_are_left_out_and_said(runs: Runs) -> None:
    said = runs.finish("run", "run.health.max_skips=100", "run.max_steps=14")
    assert "updates were left out" in said
    assert sum(e["skipped"] for e in runs.events("run", "train")) == 2
