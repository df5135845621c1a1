"""Going back: to the same place for a run that was killed at any moment, on all processes, with a true best.pt."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import keep_best, load_checkpoint, read_meta, save_checkpoint
from engine import health_monitor, healthy, keeping, rollback, verb_train
from engine.bests import prune_bests, restore_best, shelve_best
from engine.cli import Launch, parse
from engine.health_monitor import HealthMonitor
from engine.healthy import find_healthy, forget_names_after, name_candidate, promote_candidate
from engine.keeping import Keeper
from engine.log import read_log

ROOT = Path(__file__).parents[2]
UPDATES, ALARM = 16, 12  # 2 epochs of 8
# Checks at 4, 8, 12, ...; checkpoints at 5, 10, ...: 5 is healthy by the check at 8, 10 a candidate at the alarm.
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
        "epochs": 2,
        "batch_size": 8,
        "report_every": 4,
        "checkpoint_every": 5,
        "keep_checkpoints": 10,
        "tensorboard": False,
        "health": {"every": 4, "images": 8, "steps": 2, "patience": 1, "rollback": True},
    },
}


class Killed(BaseException):
    """Stands for a kill: nothing in the toolkit catches it, and files stay as they are."""


@pytest.fixture
def recipe(few_digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    data = {**RECIPE["data"], "train": str(few_digits), "val": str(few_digits)}
    path.write_text(yaml.safe_dump(RECIPE | {"data": data}))
    return path


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """FGSM is said to be perfect from a step on (planted(step); at first ALARM), in the first way through it."""
    plain, start = HealthMonitor._note, [ALARM]

    def note(self: HealthMonitor, step: int, means: dict[str, float]) -> None:
        overfitted = self.rollbacks == 0 and step >= start[0]
        plain(self, step, {**means, "fgsm_top1": 0.2 + 0.8 * overfitted, "pgd_top1": 0.2})

    monkeypatch.setattr(HealthMonitor, "_note", note)
    return lambda step: start.__setitem__(0, step)


def train(recipe: Path, folder: Path, *words: str) -> None:
    arguments = parse(["train", str(recipe), *words, "--output", str(folder), "--quiet"], "launch_gpu.py")
    assert verb_train.run(arguments, Launch(backend="cpu"))["exit_code"] == 0


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_log(folder / "log.jsonl") if entry["event"] == event]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, f"{path}.{name}")
    else:
        yield path, value


def assert_same_end(folder: Path, wanted: Path) -> None:
    found, other = (
        dict(leaves(load_checkpoint(run / f"checkpoints/step-{UPDATES:08d}.pt"))) for run in (folder, wanted)
    )
    assert found.keys() == other.keys()
    for name, value in other.items():
        is_equal = (
            torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        )
        assert is_equal, name
    assert [e["step"] for e in events(folder, "rollback")][-1:] == [
        e["step"] for e in events(wanted, "rollback")
    ]


@pytest.fixture
def straight(recipe: Path, tmp_path: Path) -> Path:
    """A run that was left alone."""
    train(recipe, tmp_path / "straight")
    (back,) = events(tmp_path / "straight", "rollback")
    assert (back["came_to"], back["step"]) == (ALARM, 5)
    return tmp_path / "straight"


def kill(patch: pytest.MonkeyPatch, owner: Any, name: str, *, call: int = 1, after: bool = False) -> None:
    """At the `call`-th call of `owner.name`, before it or behind it."""
    plain, calls = getattr(owner, name), [0]

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] != call:
            return plain(*args, **kwargs)
        if after:
            plain(*args, **kwargs)
        raise Killed

    patch.setattr(owner, name, deadly)


MOMENTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "saved and not yet a candidate": (health_monitor, "name_candidate", {}),
    "half a candidate": (healthy, "_link", {"after": True}),
    "the next one not yet a candidate": (health_monitor, "name_candidate", {"call": 2}),
    "not yet promoted": (health_monitor, "promote_candidate", {"call": 2}),
    "half promoted": (healthy.os, "replace", {}),
    "before going back": (rollback.WayBack, "take", {}),
    "gone back, not saved": (Keeper, "save_anew", {}),
    "saved anew, nothing forgotten": (rollback, "restore_best", {}),
    "candidate forgotten, later checkpoints there": (healthy, "forget_names_after", {"call": 2}),
    "all forgotten, not said": (rollback, "forget_after", {"after": True}),
}


def test_a_kill_at_any_moment_changes_nothing(
    recipe: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (moment, (owner, name, when)) in enumerate(MOMENTS.items()):
        folder = tmp_path / f"killed{number}"
        with monkeypatch.context() as patch:
            if owner is healthy.os:
                _kill_promotion(patch)
            else:
                kill(patch, owner, name, **when)
            if "forgotten, later" in moment:
                kill(patch, healthy, "forget_names_after")  # renew has a name of its own for it
            with pytest.raises(Killed):
                train(recipe, folder)
        train(recipe, folder)
        assert_same_end(folder, straight)


def _kill_promotion(patch: pytest.MonkeyPatch) -> None:
    """Behind the rename of a candidate's JSON, before that of its state."""
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        plain(source, target)
        if Path(source).name.startswith("candidate") and Path(source).suffix == ".json":
            raise Killed

    patch.setattr(healthy.os, "replace", replace)


def test_without_renewal_a_kill_would_lose_the_way_back(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill(patch, health_monitor, "name_candidate")
        with pytest.raises(Killed):
            train(recipe, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"step-00000005.pt", "step-00000005.json"}
    monkeypatch.setattr(HealthMonitor, "renew", lambda self, *, is_due: None)
    with pytest.raises(ValueError, match="no healthy checkpoint to go back to"):
        train(recipe, tmp_path / "run")


def test_a_changed_checkpoint_every_changes_no_way_back(recipe: Path, straight: Path, tmp_path: Path) -> None:
    for every in (2, 7):
        folder = tmp_path / f"every{every}"
        train(recipe, folder, "run.max_steps=3")
        train(recipe, folder, f"run.checkpoint_every={every}")
        assert_same_end(folder, straight)
        assert (folder / "checkpoints/step-00000014.pt").exists(), "the new schedule holds too"


def test_names_that_lie_ahead_are_not_used(recipe: Path, tmp_path: Path) -> None:
    """A run that is sent back by hand to step 5 forgets candidate-10, and what the check at 8 said of it."""
    folder = tmp_path / "run"
    train(recipe, folder, "run.max_steps=11")
    checkpoints = folder / "checkpoints"
    assert {p.name for p in checkpoints.glob("[ch]*.pt")} == {"candidate-00000010.pt", "healthy-00000005.pt"}
    train(recipe, folder, "run.max_steps=6", "--resume", str(checkpoints / "step-00000005.pt"))
    assert {p.name for p in checkpoints.glob("[ch]*.pt")} == {"candidate-00000005.pt", "healthy-00000005.pt"}


def step(folder: Path, number: int, value: int = 0) -> None:
    save_checkpoint(folder, number, {"x": torch.tensor(value or number)}, facts={})


def test_only_what_the_run_has_come_to_is_promoted(tmp_path: Path) -> None:
    for number in (5, 10):
        step(tmp_path, number)
    name_candidate(tmp_path, 10)
    promote_candidate(tmp_path, until=8)
    assert find_healthy(tmp_path) is None
    promote_candidate(tmp_path, until=12)
    found = find_healthy(tmp_path)
    assert found is not None
    assert found[0].step == 10
    assert find_healthy(tmp_path, until=9) is None
    forget_names_after(tmp_path, 9)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"step-{n:08d}.{s}" for n in (5, 10) for s in ("pt", "json")
    }


# ---- best.pt


def best(folder: Path, number: int, value: float) -> None:
    step(folder, number)
    keep_best(folder, number, metric="clean", value=value, before=lambda: shelve_best(folder))


def bests(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("best*.pt"))


def test_a_way_back_brings_up_the_best_before_it(tmp_path: Path) -> None:
    for number, value in ((4, 0.3), (8, 0.5), (12, 0.4), (16, 0.6), (20, 0.7)):
        best(tmp_path, number, value)
        prune_bests(tmp_path, earliest=10)
    assert bests(tmp_path) == ["best", "best-00000008", "best-00000016"]
    assert restore_best(tmp_path, 16) == "best.pt is that of step 16 again"
    assert restore_best(tmp_path, 12) == "best.pt is that of step 8 again"
    assert restore_best(tmp_path, 12) == ""
    assert bests(tmp_path) == ["best"]
    assert int(load_checkpoint(tmp_path / "best.pt")["x"]) == 8
    assert read_meta(tmp_path / "best.pt").facts == {"metric": "clean", "value": 0.5}
    assert restore_best(tmp_path, 7) == "best.pt was of the way that is left, and is deleted"
    assert bests(tmp_path) == []
    assert restore_best(tmp_path, 7) == ""


def test_a_torn_best_is_neither_kept_nor_left(tmp_path: Path) -> None:
    best(tmp_path, 4, 0.3)
    best(tmp_path, 8, 0.5)
    (tmp_path / "best.pt").write_bytes(b"torn")
    shelve_best(tmp_path)
    assert bests(tmp_path) == ["best", "best-00000004"]
    restore_best(tmp_path, 8)
    assert int(load_checkpoint(tmp_path / "best.pt")["x"]) == 4


def test_nothing_is_kept_that_no_way_back_needs(tmp_path: Path) -> None:
    best(tmp_path, 4, 0.3)
    best(tmp_path, 8, 0.5)
    prune_bests(tmp_path, earliest=8)
    assert bests(tmp_path) == ["best"]


def test_best_of_a_run_that_goes_back(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    planted: Callable[[int], None],
) -> None:
    """Every epoch is said to be better. The second ends at 16, between the two checks that lead back to 10."""
    planted(16)
    plain, forget, seen = Keeper.keep_best, rollback.forget_after, list[int]()
    monkeypatch.setattr(
        Keeper, "keep_best", lambda self, metric, value: plain(self, metric, self.state.step / 100)
    )

    def look(folder: Path, number: int) -> None:
        seen.append(read_meta(folder / "best.pt").step)
        if len(seen) == 1:
            raise Killed  # it goes on from 16, and goes back once more
        forget(folder, number)

    monkeypatch.setattr(rollback, "forget_after", look)
    words = ["evals=[{suite: clean, every: 1, num_images: 8}]", "run.best=clean", "run.health.patience=2"]
    words.append("run.epochs=3")
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", *words)
    train(recipe, tmp_path / "run", *words)
    assert seen == [8, 8], "of the way that was left, 16 was best"
    assert [(e["came_to"], e["step"]) for e in events(tmp_path / "run", "rollback")] == [(20, 10)] * 2
    assert json.loads((tmp_path / "run/checkpoints/best.json").read_text())["step"] == 24


# ---- processes

TWO = """
import sys, torch
sys.path.insert(0, {root!r})
import engine.step as step
from engine.cli import Launch, main
from engine.health_monitor import HealthMonitor
from engine.loop import Loop

make, loops = step.make_objective, []
init = Loop.__post_init__
Loop.__post_init__ = lambda self: (init(self), loops.append(self))[0]
def poisoned(*args):
    inner = make(*args)
    def objective(forward, inputs):
        losses = inner(forward, inputs)
        bad = loops[0].env.rank == 1 and loops[0].state.step >= 12 and loops[0].health.rollbacks == 0
        return losses._replace(loss=losses.loss * (float("nan") if bad else 1.0))
    return objective
step.make_objective = poisoned
plain = HealthMonitor._note
HealthMonitor._note = lambda self, at, means: plain(
    self, at, dict(means, fgsm_top1=1.0 if self.rollbacks == 1 and at >= 16 else 0.2, pgd_top1=0.2)
)
code = main(sys.argv[1:], Launch(backend="cpu", world_size=None), program="launch_gpu.py")
weights = torch.cat([p.detach().flatten() for p in loops[0].state.model.parameters()])
print("weights", weights.double().sum().item(), loops[0].health.rollbacks)
sys.exit(code)
"""


@pytest.mark.slow
def test_two_processes_go_back_as_one(
    recipe: Path, tmp_path: Path, process_environment: Callable[..., dict[str, str]]
) -> None:
    """Twice: for a gradient that is not finite on one of them, and for an alarm."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [
        "train",
        str(recipe),
        "run.epochs=3",
        "run.health.max_skips=3",
        "--output",
        str(tmp_path / "run"),
    ]
    outer = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO.format(root=str(ROOT)), *words],
            env=process_environment(RANK=str(rank), LOCAL_RANK=str(rank), **outer),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (text[text.index("weights ") :].splitlines()[0] for text in said)
    assert first == second
    assert first.endswith(" 2")
    backs = [(e["came_to"], e["step"]) for e in events(tmp_path / "run", "rollback")]
    assert backs == [(15, 10), (16, 10)]


def test_the_folder_has_no_other_names(straight: Path) -> None:
    assert keeping.find_healthy(straight / "checkpoints") is not None
    names = {path.stem.partition("-")[0] for path in (straight / "checkpoints").iterdir()}
    assert names <= {"step", "healthy", "candidate"}
