"""model.trainable head in whole runs: on two processes and on XLA nothing but the classifier moves."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import latest_checkpoint
from engine.build import Layout, build_state
from engine.log import read_log
from engine.recipe import parse_recipe
from tests.engine.test_resume import RECIPE

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
UPDATES = 10


def tree(few_digits: Path) -> dict[str, Any]:
    """Attacks in train mode, running statistics, drop-path, an average: all that could move what is frozen."""
    return RECIPE | {
        "data": {**RECIPE["data"], "train": str(few_digits)},
        "model": {**RECIPE["model"], "trainable": "head"},
        "objective": {**RECIPE["objective"], "attack": {**RECIPE["objective"]["attack"], "mode": "train"}},
        "run": {**RECIPE["run"], "max_steps": UPDATES, "checkpoint_every": 5},
    }


@pytest.mark.parametrize(("kind", "flags"), [("gpu", ["--cpu", "--num-processes", "2"]), ("xla", [])])
def test_only_the_classifier_moves(
    kind: str,
    flags: list[str],
    launch: Launch,
    few_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    recipe = tmp_path / "probe.yaml"
    recipe.write_text(yaml.safe_dump(tree(few_digits)))
    done = launch(kind, *flags, "train", recipe, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    found = latest_checkpoint(tmp_path / "run/checkpoints")
    assert found is not None
    assert found[1]["step"] == UPDATES
    from bits.environment import open_environment

    layout = Layout(global_batch=8, per_process=8, per_device=8)
    fresh = build_state(
        parse_recipe(tree(few_digits)), open_environment("cpu"), num_classes=10, layout=layout
    )
    start = fresh.model.state_dict()
    for part in ("model", "ema"):
        moved = {name for name, value in found[1][part].items() if not torch.equal(value, start[name])}
        assert moved == {"backbone.head.weight", "backbone.head.bias"}, (part, moved)
    # The optimizer remembers nothing of the rest.
    assert len(found[1]["optimizer"]["state"]) == 2
    entries = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "train"]
    assert entries[-1]["compiles"] == entries[1]["compiles"]
    assert entries[-1]["loss"] < entries[0]["loss"] * 1.5
