"""The plan of a run and its receipt: counts by hand, a measurement that ends in time, and nothing written."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.environment import open_environment
from bits.state import TrainState
from engine import trial
from engine.build import batch_layout, build_state
from engine.cli import Launch, main
from engine.plan_table import rows
from engine.planner import count, eval_forwards
from engine.receipt import used
from engine.recipe import Recipe, load_recipe, parse_recipe
from engine.sources import Access
from engine.trial import measured

RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0},
    "model": {"name": "small_cnn"},
    "optim": {"lr": 1e-3, "ema": 0.9, "accumulate": 2},
    "objective": {
        "kind": "adversarial",
        "attack": {"norm": "linf", "eps": "8/255", "step_size": "4/255", "steps": 3},
    },
    "evals": [
        {"suite": "clean", "every": 2},
        {
            **{"attack": "pgd", "norm": "linf", "eps": "8/255", "step_size": "2/255", "steps": 20},
            **{"restarts": 2, "num_images": 30, "weights": "raw"},
        },
    ],
    "run": {"epochs": 5, "batch_size": 8},
}


@pytest.fixture
def path(few_digits: Path, tmp_path: Path) -> Path:
    data = {**RECIPE["data"], "train": str(few_digits), "val": str(few_digits)}
    found = tmp_path / "tiny.yaml"
    found.write_text(yaml.safe_dump(RECIPE | {"data": data}))
    return found


def test_what_is_counted(path: Path) -> None:
    plan, index = count(load_recipe(path), Access(builds=False))
    assert index is not None
    assert plan.num_images == 70
    assert plan.updates == 70 // 8 * 5 // 2
    assert plan.images == 20 * 16
    assert (plan.forward, plan.input_only, plan.full, plan.teacher) == (4, 3, 1, 0)
    # clean: 70 images, raw and ema, after epochs 2 and 4 and at the end; PGD: 30 images, 1 + 2 * (40 + 1) forwards
    assert plan.eval_forwards == 70 * 2 * 3 + 30 * 83
    assert plan.step_images_per_s is None
    assert plan.notes == ()


def test_the_size_of_a_checkpoint_is_that_of_its_tensors(path: Path) -> None:
    recipe = load_recipe(path, ["data.num_classes=10"])
    plan, _ = count(recipe, Access(builds=False))
    env = open_environment("cpu")
    state: TrainState = build_state(recipe, env, num_classes=10, layout=batch_layout(8, env))
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    held = state.state_dict()
    tensors = [*held["model"].values(), *held["ema"].values()]
    tensors += [t for entry in held["optimizer"]["state"].values() for t in entry.values()]
    assert plan.checkpoint_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert plan.parameters == sum(p.numel() for p in state.model.parameters())


def test_measured_numbers_fit_together(path: Path) -> None:
    recipe = load_recipe(path)
    plan, index = count(recipe, Access(builds=False))
    found = measured(plan, recipe, open_environment("cpu"), index)
    assert found.step_images_per_s is not None
    assert found.data_images_per_s is not None
    assert found.train_hours is not None
    speed = min(found.step_images_per_s, found.data_images_per_s)
    assert found.train_hours == pytest.approx(320 / speed / 3600)
    assert found.memory_bytes is not None
    assert found.memory_bytes > 50 << 20
    assert (found.measured_batch, found.memory_of) == (8, "host memory")
    assert all(text for _, text in rows(found))


@pytest.mark.parametrize(
    ("norm_stats", "batch", "wanted"),
    [("local", 64, 8), ("ghost:16", 64, 16), ("ghost:3", 24, 6), ("groups:4", 64, 64), ("local", 4, 4)],
)
def test_a_small_batch_fits_norms_and_mixing(norm_stats: str, batch: int, wanted: int, path: Path) -> None:
    recipe = load_recipe(path, [f"model.norm_stats={norm_stats}", f"run.batch_size={batch}"])
    assert trial.small_batch(recipe, open_environment("cpu"), batch) == wanted


def test_a_large_batch_is_measured_by_a_small_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BOUND_S", 0.0)
    recipe = load_recipe(path, ["run.batch_size=64"])
    plan, _ = count(recipe, Access(builds=False))
    found = measured(replace(plan), recipe, open_environment("cpu"), None)
    assert found.measured_batch == 8
    assert any("8 of 64 images" in note for note in found.notes)
    assert any("none here to measure" in note for note in found.notes)


def dry_run(path: Path, tmp_path: Path, *words: str) -> dict[str, Any]:
    arguments = ["train", str(path), "--dry-run", "--output", str(tmp_path / "run"), *words]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("**/*") if p.name != "plan.json"}
    code = main(
        [*arguments, "--json", str(tmp_path / "plan.json")],
        Launch(backend="cpu"),
        program="launch_gpu.py",
    )
    assert code == 0
    after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("**/*") if p.name != "plan.json"}
    assert after == before, "a dry run writes nothing"
    result: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    return result


def test_a_dry_run_prints_a_recipe_and_beside_it_a_table(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dry_run(path, tmp_path)
    said = capsys.readouterr()
    assert isinstance(parse_recipe(yaml.safe_load(said.out)), Recipe)
    lines = dict(line.split("  ", 1) for line in said.err.splitlines() if "  " in line)
    assert lines["updates"].strip() == "20"
    assert float(lines["images/s of updates"].replace(",", "")) > 0
    assert result["plan"]["updates"] == 20


def test_without_shards_the_plan_says_so(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data.train=nowhere", "data.val=nowhere", "data.num_classes=10", "--no-measure")
    plan = dry_run(path, tmp_path, *words)["plan"]
    assert (plan["updates"], plan["eval_forwards"], plan["step_images_per_s"]) == (None, None, None)
    assert plan["forward"] == 4
    said = capsys.readouterr().err
    assert "data.train cannot be opened" in said
    assert "data.val cannot be opened" in said
    measured_plan = dry_run(path, tmp_path, *words[:3])["plan"]
    assert math.isfinite(measured_plan["step_images_per_s"])
    assert measured_plan["train_hours"] is None


def test_evaluations_of_both_weights_count_twice(path: Path) -> None:
    recipe = load_recipe(path, ["evals=[{suite: clean}]"])
    assert eval_forwards(recipe, 100) == 200
    assert eval_forwards(load_recipe(path, ["evals=[{suite: clean}]", "optim.ema=null"]), 100) == 100


# ---- receipts


def test_a_receipt_adds_up_the_log() -> None:
    train = {"event": "train", "images_per_s": 50.0}
    log: list[dict[str, Any]] = [
        {"event": "start", "time": 0.0, "step": 0},
        {**train, "time": 10.0, "step": 1, "images_per_s": 1.0},
        {**train, "time": 20.0, "step": 6, "skipped": 2},
        {"event": "eval", "time": 26.0, "step": 6},
        # killed at step 6, with a checkpoint at 4
        {"event": "start", "time": 1000.0, "step": 4},
        {**train, "time": 1004.0, "step": 10, "skipped": 0},
        {"event": "alarm", "time": 1004.0, "step": 10},
        {"event": "rollback", "time": 1005.0, "step": 8},
        {**train, "time": 1009.0, "step": 12},
    ]
    found = used(log, images_per_update=16)
    assert found["updates"] == 6 + 6 + 4
    assert found["images"] == 256
    assert found["train_hours"] == pytest.approx(28 / 3600)
    assert found["eval_hours"] == pytest.approx(6 / 3600)
    assert found["eval_share"] == pytest.approx(6 / 35)
    assert found["images_per_s"] == pytest.approx(256 / 28, abs=0.01)
    assert found["images_per_s_at_first"] == 50.0
    assert (found["starts"], found["rollbacks"], found["alarms"], found["updates_left_out"]) == (2, 1, 1, 2)


def test_a_run_ends_with_its_receipt(path: Path, tmp_path: Path) -> None:
    words = ["train", str(path), "evals=[{suite: clean}]", "run.epochs=1", "--output", str(tmp_path / "run")]
    assert main([*words, "--quiet"], Launch(backend="cpu"), program="launch_gpu.py") == 0
    receipt = json.loads((tmp_path / "run/receipt.json").read_text())
    planned, cost = receipt["planned"], receipt["used"]
    assert (planned["updates"], cost["updates"]) == (4, 4)
    assert planned["train_forwards"] == 4 * 16 * (4 + 3 + 2)
    assert planned["eval_forwards"] == 140
    assert cost["starts"] == 1
    assert cost["memory_bytes"] > 0
