"""XLA: whatever changes from step to step, a fixed set of graphs runs, and nothing else happens.

Nothing is compiled after the second update, nothing falls back to the host, and nothing is read back but what
a report asks for. Counted from torch_xla's metrics over whole runs.
"""

import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.log import read_log

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
NUM_UPDATES = 16  # 4 epochs of 4 batches
# Values that recompile when they are Python numbers in a graph: 0, 1, equal ones, and new ones every epoch.
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1"},
    "model": {"name": "small_cnn", "norm_stats": "ghost:8", "drop_path": 0.1},
    "optim": {"lr": 1.0, "warmup_epochs": 1, "weight_decay": 0.05, "ema": 0.9, "clip_norm": 1.0},
    "objective": {
        "kind": "adversarial",
        "smoothing": 0.1,
        "mixup": 0.8,
        "attack": {"norm": "linf", "eps": "16/255", "step_size": "16/255", "steps": 1, "clean_prob": 0.2},
        "warmup": {
            "magnitude": [[0, 1], [1, 5], [2, 9]],
            "mix_prob": [[0, 0.0], [1, 0.5], [3, 1.0]],
            "cutmix": [[0, 0.0], [2, 1.0]],
            "switch_prob": [[0, 0.0], [2, 0.3], [3, 0.5]],
            "eps": [[0, 0.0], [1, "8/255"], [3, "16/255"]],
        },
    },
    "evals": [],
    "run": {"epochs": 4, "batch_size": 16, "report_every": 1, "checkpoint_every": 10_000},
}
MANY_STEPS = [  # the other branches: several attack steps, micro-batches, SGD, augmentation here, reports seldom
    *("data.randaug_on=device", "data.color_jitter=[0.4, 0.4, 0.4, 0.1]", "data.erase_prob=0.5"),
    "data.color_jitter_on=device",
    *("data.erase_mode=pixel", "data.erase_count=2", "data.erase_after_mix=true"),
    *("objective.attack.steps=2", "optim.name=sgd", "optim.accumulate=2", "run.report_every=4"),
    *("data.scale=[0.5, 1.0]", "objective.warmup.mix_prob=null", "optim.clip_norm=null"),
    *("objective.warmup.steps=[[0, 1], [2, 2]]", "optim.clip_agc=0.01", "optim.ema_warmup=true"),
]


def entries_of_run(
    launch: Launch, few_digits: Path, folder: Path, *, devices: int, overrides: list[str]
) -> list[dict[str, Any]]:
    """The train entries of an XLA run on `devices` devices; its only checkpoint is the last."""
    tree = RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}
    recipe = folder / "static.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    words = ["--num-devices", str(devices), "train", recipe, *overrides, "--output", folder / "run"]
    done = launch("xla", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    entries = [entry for entry in read_log(folder / "run/log.jsonl") if entry["event"] == "train"]
    assert len({entry["lr"] for entry in entries}) > len(entries) / 2, "the lr was to change"
    return entries


def growth(entries: list[dict[str, Any]], name: str) -> list[int]:
    """By how much a counter grew from each report to the next."""
    values = [entry[name] for entry in entries]
    return [after - before for before, after in pairwise(values)]


def reads_wanted(entries: list[dict[str, Any]]) -> list[int]:
    """How the reads must grow: the totals of a report are read when the next one is made, one read each, and none
    in a step. The pictures of an epoch's first report are one more, which makes its own totals' turn come sooner.
    """
    epochs = [int(entry["epoch"] + 1e-3) for entry in entries]
    shown = [True] + [after > before for before, after in pairwise(epochs)]
    return [1] + [1 + has_pictures for has_pictures in shown[1:-1]]


@pytest.fixture(autouse=True)
def _quick_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same graphs, compiled without care.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.mark.parametrize("devices", [1, 2])
def test_every_update_of_a_run_uses_the_graphs_of_the_first_two(
    devices: int, launch: Launch, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if devices == 1:  # a step that is not like those before it is an error
        monkeypatch.setenv("STRICT_STEPS", "1")
    entries = entries_of_run(launch, few_digits, tmp_path, devices=devices, overrides=[])
    assert [entry["step"] for entry in entries] == list(range(1, NUM_UPDATES + 1))
    assert entries[0]["compiles"] > 0, "the counter counts"
    # Behind the first update only what a report copies is new, in milliseconds: the step is one graph from the start.
    assert entries[1]["compile_ms"] - entries[0]["compile_ms"] < 0.2 * entries[0]["compile_ms"]
    assert growth(entries[1:], "compiles") == [0] * (NUM_UPDATES - 2)
    assert {entry["fallbacks"] for entry in entries} == {0}
    assert growth(entries, "host_reads") == reads_wanted(entries)
    assert sum(reads_wanted(entries)) == NUM_UPDATES - 1 + 3, (
        "pictures came with the end of epochs 1, 2 and 3"
    )
    # One graph an update, a report, and an epoch's pictures. Executions are counted when they are done: a few may be
    # late.
    assert sum(growth(entries[1:], "executes")) <= 2 * (NUM_UPDATES - 2) + 3 + 4


def test_nothing_is_read_between_reports(launch: Launch, few_digits: Path, tmp_path: Path) -> None:
    entries = entries_of_run(launch, few_digits, tmp_path, devices=1, overrides=MANY_STEPS)
    steps = [entry["step"] for entry in entries]
    # On a slow machine reports come sooner than every 4 updates: however many, the reads below are theirs alone.
    assert (steps[0], steps[-1]) == (1, NUM_UPDATES // 2)
    assert growth(entries[1:], "compiles") == [0] * (len(steps) - 2)
    assert {entry["fallbacks"] for entry in entries} == {0}
    assert growth(entries, "host_reads") == reads_wanted(entries)
