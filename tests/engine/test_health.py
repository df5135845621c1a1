"""Checks of an adversarial training: what they measure, when they raise an alarm, and what that does."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from bits.checkpoint import load_checkpoint
from bits.environment import Environment, open_environment
from data.augment import NO_AUGMENT
from engine.health import Probe, Watch, check
from engine.health_fields import HealthSection
from engine.log import read_log
from robust.threat import distance, slack
from tests.engine.one_step import ATTACK, EPS, cnn, knobs, make_batch, make_step

ROOT = Path(__file__).parents[2]
LIMITS = HealthSection(every=10, max_gap=0.25, min_share=0.5, patience=2)


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


# ---- the alarm


def alarms(pairs: list[tuple[float, float]], limits: HealthSection = LIMITS) -> list[int]:
    """Numbers of the checks (fgsm, pgd) that raise one."""
    watch, found = Watch(), []
    for number, (fgsm, pgd) in enumerate(pairs):
        watch, why = check(watch, fgsm=fgsm, pgd=pgd, settings=limits)
        found += [number] if why else []
    return found


def test_planted_catastrophic_overfitting_is_noticed_once() -> None:
    healthy = [(0.2, 0.15), (0.4, 0.35), (0.5, 0.42)]
    overfitted = [(0.9, 0.02), (0.95, 0.0), (0.97, 0.0), (0.98, 0.0)]
    assert alarms(healthy + overfitted) == [4]
    assert alarms(healthy + overfitted + healthy + overfitted) == [4, 11]


def test_a_single_bad_check_is_chance() -> None:
    assert alarms([(0.5, 0.4), (0.9, 0.4), (0.5, 0.4), (0.9, 0.4), (0.5, 0.4)]) == []
    one = LIMITS.model_copy(update={"patience": 1})
    assert alarms([(0.5, 0.4), (0.9, 0.4), (0.5, 0.4)], one) == [1]


def test_pgd_accuracy_that_falls_with_fgsm_is_noticed_too() -> None:
    assert alarms([(0.5, 0.4), (0.2, 0.15), (0.2, 0.15)]) == [2]
    assert alarms([(0.1, 0.08), (0.05, 0.0), (0.05, 0.0)]) == [], "nothing was learnt yet"


def test_what_is_wrong_is_said_in_numbers() -> None:
    one = LIMITS.model_copy(update={"patience": 1})
    assert check(Watch(), fgsm=0.9, pgd=0.1, settings=one)[1] == (
        "accuracy is 90 % under FGSM and 10 % under PGD-10"
    )
    assert check(Watch(0.4), fgsm=0.2, pgd=0.1, settings=one)[1] == (
        "accuracy under PGD-10 fell to 10 %, from 40 %"
    )


# ---- what a check measures


def probe_of(env: Environment, model: nn.Module, **limits: Any) -> dict[str, float]:
    settings = HealthSection(every=1, **limits)
    probe = Probe(env=env, model=model, attack=ATTACK, settings=settings, augment=NO_AUGMENT)
    probe(make_batch(16), torch.tensor(EPS))
    return probe.meters.means(probe.meters.snapshot())


class Quadrant(nn.Module):
    """Right where the middle of the image is above 1/2; its gradient lies in one pixel."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        value = self.scale * (image[:, 0, 8, 8] - 0.5)
        return torch.stack([value] + [torch.zeros_like(value)] * 4, dim=1)


def test_zero_gradients_are_counted(env: Environment) -> None:
    one_of = 3 * 16 * 16
    assert probe_of(env, Quadrant(1.0))["zero_gradients"] == pytest.approx(1 - 1 / one_of)
    assert probe_of(env, Quadrant(0.0))["zero_gradients"] == 1.0


def test_a_check_leaves_the_model_alone(env: Environment) -> None:
    model = cnn().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = probe_of(env, model, images=4, steps=2)
    assert 0.0 <= found["pgd_top1"] <= found["fgsm_top1"] <= 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_model_that_hides_its_gradient_shows_a_gap(env: Environment) -> None:
    """At the clean image its gradient is zero, which stops FGSM; half an eps away it is wrong, which PGD finds."""

    class Hiding(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            moved = (image - self.clean).mean(dim=(1, 2, 3)) / EPS
            margin = 1.0 - 6.0 * moved.abs() * (1.0 - moved.abs())
            onehot = nn.functional.one_hot(make_batch(16).label, 5)
            return 3.0 * onehot * margin[:, None]

    model = Hiding()
    model.clean = make_batch(16).image.float().div(255)  # type: ignore[assignment]
    found = probe_of(env, model)
    assert (found["fgsm_top1"], found["pgd_top1"], found["zero_gradients"]) == (1.0, 0.0, 1.0)


# ---- eps in pixel units


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distance_is_metered_and_none_lies_beyond_eps(norm: str, env: Environment) -> None:
    eps = EPS if norm == "linf" else 0.5
    attack = ATTACK.model_copy(update={"norm": norm, "eps": eps, "step_size": eps, "steps": 2})
    step = make_step(env, cnn(), attack=attack)
    step(make_batch(), knobs(eps=eps, step_size=eps))
    means = step.meters.means(step.meters.snapshot())
    assert means["beyond_eps"] == 0.0
    assert 0.5 * eps < means["distance"] <= eps + slack(norm, eps, (3, 16, 16))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distance_is_the_norm_of_the_change(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 3, 5, 5, generator=generator)
    wanted = torch.linalg.vector_norm((a - b).flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(distance(a, b, norm), wanted)


# ---- runs

RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0},
    "model": {"name": "small_cnn"},
    "optim": {"lr": 2e-3},
    "objective": {
        "kind": "adversarial",
        "attack": {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1},
    },
    "evals": [],
    "run": {
        "epochs": 3,
        "batch_size": 8,
        "report_every": 50,
        "checkpoint_every": 4,
        "keep_checkpoints": 10,
        "health": {"every": 4, "images": 8, "steps": 2, "patience": 1, "rollback": True},
    },
}
# FGSM is said to be perfect from a step on, in the first run through it; or the attack goes too far.
PLANTED = """
import sys
sys.path.insert(0, {root!r})
import engine.health_monitor as monitor
from engine.cli import Launch, main
from robust.threat import Linf

plain = monitor.HealthMonitor._note
def note(self, step, means):
    overfitted = self.rollbacks == 0 and step >= {start}
    plain(self, step, dict(means, fgsm_top1=0.2 + 0.8 * overfitted, pgd_top1=0.2))
monitor.HealthMonitor._note = note
if {far}:
    Linf.project = lambda self, image, clean, eps: image.clamp(0.0, 1.0) + 0.01
sys.exit(main(sys.argv[1:], Launch(backend={backend!r}), program="launch_gpu.py"))
"""


def train(
    few_digits: Path, folder: Path, *words: str, start: int = 10, far: bool = False, backend: str = "cpu"
) -> "subprocess.CompletedProcess[str]":
    recipe = folder.parent / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}))
    code = PLANTED.format(root=str(ROOT), start=start, far=far, backend=backend)
    outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    flags = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, "-c", code, "train", recipe, *words, "--output", folder],
        env=outer | flags,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def events(folder: Path, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_log(folder / "log.jsonl") if entry["event"] == event]


def test_an_alarm_goes_back_behind_the_check_that_was_good(few_digits: Path, tmp_path: Path) -> None:
    done = train(few_digits, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "catastrophic overfitting?" in done.stderr
    (alarm,), (back,) = events(tmp_path / "run", "alarm"), events(tmp_path / "run", "rollback")
    assert (alarm["step"], back["came_to"], back["step"]) == (12, 12, 8)
    checks = [e for e in events(tmp_path / "run", "health") if e["step"] % 4 == 0]
    assert [e["step"] for e in checks] == [4, 8, 12, 12, 16, 20, 24]
    assert {"fgsm_top1", "pgd_top1", "gap", "zero_gradients"} <= checks[0].keys()
    assert load_checkpoint(tmp_path / "run/checkpoints/step-00000024.pt")["health"]["rollbacks"] == 1


def test_without_rollback_an_alarm_is_a_warning(few_digits: Path, tmp_path: Path) -> None:
    done = train(few_digits, tmp_path / "run", "run.health.rollback=false")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(events(tmp_path / "run", "alarm")) == 1
    assert events(tmp_path / "run", "rollback") == []


def test_an_attack_beyond_eps_ends_the_run_in_one_line(few_digits: Path, tmp_path: Path) -> None:
    done = train(few_digits, tmp_path / "run", far=True)
    assert done.returncode == 2, done.stdout[-2000:]
    assert "of the attacked images lie beyond eps" in done.stderr
    assert done.stderr.count("error: step 1: ") == 1
    assert "Traceback" not in done.stderr


def test_graphs_of_a_check_are_there_by_the_second_update_on_xla(few_digits: Path, tmp_path: Path) -> None:
    done = train(few_digits, tmp_path / "run", "run.report_every=1", start=99, backend="xla")
    assert done.returncode == 0, done.stderr[-2000:]
    entries = events(tmp_path / "run", "train")
    assert [e["step"] for e in entries] == list(range(1, 25))
    assert len({e["compiles"] for e in entries[2:]}) == 1, [e["compiles"] for e in entries]
    assert {e["fallbacks"] for e in entries} == {0}
