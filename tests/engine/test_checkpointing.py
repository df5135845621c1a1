"""`model.recompute` in training: every objective learns the same with it, and XLA's graphs stay a fixed set."""

import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.environment import Environment, open_environment
from bits.meters import Meters
from bits.state import TrainState
from data.batch import LAM, NUM_DRAWS, START, Batch
from engine.build import batch_layout, build_state, check_model
from engine.free import make_step
from engine.knobs import pack_knobs
from engine.log import read_log
from engine.passes import passes_of
from engine.recipe import Recipe, parse_recipe
from engine.step import meter_names, step_settings
from models.recompute import blocks

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
ATTACK = {"norm": "linf", "eps": "8/255", "step_size": "4/255", "steps": 2, "mode": "train"}
RESNET = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False},
}
VIT = {"name": "small_vit", "args": {"depth": 2}}


def recipe(objective: dict[str, Any], *, recompute: bool, **model: Any) -> Recipe:
    return parse_recipe(
        {
            "data": {"train": "unused", "image_size": 32},
            "model": {"drop_path": 0.3, **model, "recompute": recompute},
            "optim": {"name": "adamw", "lr": 1e-3, "ema": 0.9},
            "objective": objective,
            "run": {"epochs": 1, "batch_size": 8},
        }
    )


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.zeros(8, NUM_DRAWS)
    draw[:, LAM], draw[:, START] = 1.0, torch.rand(8, generator=generator)
    return Batch(
        image=torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8),
        label=torch.randint(0, 5, (8,), generator=generator),
        mask=torch.ones(8, dtype=torch.bool),
        key=torch.arange(8),
        seed=torch.randint(0, 1 << 62, (8,), generator=generator),
        draw=draw,
    )


def trained(
    env: Environment, settings: Recipe, watch: Callable[[TrainState], None] = lambda state: None
) -> dict[str, torch.Tensor]:
    """The model and its average after three steps; `watch` sees the state before them."""
    state = build_state(settings, env, num_classes=5, layout=batch_layout(8, env))
    watch(state)
    state.model.train()
    kinds = {type(block).__name__.startswith("Recomputed") for block in blocks(state.model)}
    assert kinds == {settings.model.recompute}
    constants = step_settings(settings, 5)
    step = make_step(
        env=env,
        state=state,
        forward=env.wrap(state.model),
        settings=constants,
        meters=Meters(meter_names(constants), env.device),
    )
    for number in range(3):
        env.seed(number)
        step(make_batch(number), pack_knobs(lr=1e-3, eps=8 / 255, step_size=4 / 255, step=number))
    assert state.ema is not None
    average = {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    return {**state.model.state_dict(), **average}


OBJECTIVES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "clean"}, VIT),
    ({"kind": "adversarial", "attack": ATTACK}, RESNET),
    ({"kind": "adversarial", "attack": {**ATTACK, "mode": "eval"}}, VIT),
    ({"kind": "adversarial", "attack": {**ATTACK, "mode": "groups"}}, RESNET | {"norm_stats": "groups:2x2"}),
    ({"kind": "trades", "attack": {**ATTACK, "mode": "eval"}}, RESNET),
    ({"kind": "mart", "attack": ATTACK}, RESNET),
    ({"kind": "advprop", "attack": {**ATTACK, "mode": "eval"}}, RESNET | {"split_norm": True}),
    ({"kind": "free", "replays": 2, "attack": {**ATTACK, "mode": "eval", "steps": 1}}, RESNET),
]


@pytest.mark.parametrize(("objective", "model"), OBJECTIVES)
def test_every_objective_learns_the_same(objective: dict[str, Any], model: dict[str, Any]) -> None:
    env = open_environment("cpu")
    expected, found = (trained(env, recipe(objective, recompute=value, **model)) for value in (False, True))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), (
            f"{name}: {(found[name].float() - tensor.float()).abs().max()}"
        )


@pytest.mark.parametrize(("objective", "model"), OBJECTIVES)
def test_its_passes_are_counted(objective: dict[str, Any], model: dict[str, Any]) -> None:
    """Of the first layer of a block: what the update runs is what `passes_of` says, with and without."""
    env = open_environment("cpu")
    for recompute in (False, True):
        settings = recipe(objective, recompute=recompute, **model)
        runs: list[int] = []

        def watch(state: TrainState, runs: list[int] = runs) -> None:
            first = next(part for part in blocks(state.model)[0].modules() if not list(part.children()))
            first.register_forward_hook(lambda _, inputs, __: runs.append(len(inputs[0])))

        trained(env, settings, watch)
        assert sum(runs) == 3 * 8 * passes_of(settings.objective, recompute=recompute).forward


def test_a_model_without_blocks_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"small_cnn.*set model.recompute to false"):
        check_model(recipe({"kind": "clean"}, recompute=True, name="small_cnn"))


@pytest.mark.parametrize(
    ("model", "message"),
    [({"recompute": 2}, "model.recompute"), ({"args": {"recompute": True}}, "args.*recompute")],
)
def test_bad_values_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(
            {
                "data": {"train": "unused", "image_size": 32},
                "model": {"name": "small_vit", **model},
                "optim": {"lr": 1e-3},
                "run": {"epochs": 1, "batch_size": 8},
            }
        )


@pytest.mark.slow
def test_a_run_on_xla_is_the_same_and_static(
    launch: Launch, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    logs = []
    for value in (False, True):
        tree = {
            "data": {"train": str(few_digits), "image_size": 32, "num_workers": 0},
            "model": {**VIT, "drop_path": 0.3, "recompute": value},
            "optim": {"name": "adamw", "lr": 1e-3},
            "objective": {"kind": "adversarial", "attack": {**ATTACK, "mode": "eval"}},
            "evals": [],
            "run": {"epochs": 2, "batch_size": 16, "report_every": 1},
        }
        path = tmp_path / f"{value}.yaml"
        path.write_text(yaml.safe_dump(tree))
        done = launch("xla", "train", path, "--output", tmp_path / str(value))
        assert done.returncode == 0, done.stderr[-2000:]
        entries = [e for e in read_log(tmp_path / f"{value}/log.jsonl") if e["event"] == "train"]
        assert {entry["fallbacks"] for entry in entries} == {0}
        assert [b["compiles"] - a["compiles"] for a, b in pairwise(entries[1:])] == [0] * (len(entries) - 2)
        logs.append([entry["loss"] for entry in entries])
    assert len(logs[0]) == 8
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)
