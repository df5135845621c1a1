"""XLA over a whole training in miniature: 24 epochs with everything that changes while a run goes on.

PGD-1 with a radius that grows, an augmentation warm-up, mixup, cutmix and erasing, two micro-batches an update, an
average with a warm-up of its own, ghost norm, clipping, a schedule, checkpoints, and every six epochs an evaluation
and an attack of the live weights and of the average. From the first evaluation on nothing is compiled, nothing falls
back to the host, and each read is a report's, a picture's, a checkpoint's or an evaluation's.
"""

import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import latest_checkpoint
from engine.log import read_log

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
EPOCHS, UPDATES_PER_EPOCH, EVALUATE_EVERY = 24, 4, 6  # 70 images are 8 batches of 8, two an update
NUM_UPDATES = EPOCHS * UPDATES_PER_EPOCH
RECIPE: dict[str, Any] = {
    "data": {
        **{"image_size": 16, "num_workers": 0, "eval_resize": "squash", "scale": [0.5, 1.0]},
        **{"randaug": "rand-m9-mstd0.5-inc1", "randaug_on": "device"},
        **{"erase_prob": 0.5, "erase_mode": "pixel", "erase_count": 2, "erase_after_mix": True},
    },
    "model": {"name": "small_cnn", "norm_stats": "ghost:2", "drop_path": 0.1},
    "optim": {
        **{"lr": 4e-3, "warmup_epochs": 5, "warmup_lr": 0.0, "weight_decay": 0.05, "accumulate": 2},
        **{"ema": 0.99, "ema_warmup": True, "clip_norm": 1.0},
    },
    "objective": {
        **{"kind": "adversarial", "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0},
        "attack": {"norm": "linf", "eps": "16/255", "step_size": "16/255", "steps": 1, "clean_prob": 0.2},
        "warmup": {
            "interpolation": "linear",
            "magnitude": [[0, 1], [9, 9]],
            "mix_prob": [[0, 0.0], [2, 0.5], [10, 1.0]],
            "cutmix": [[0, 0.0], [5, 0.0], [6, 1.0]],
            "switch_prob": [[0, 0.0], [5, 0.0], [10, 0.5]],
            "eps": [[0, 0.0], [12, "16/255"]],
        },
    },
    "evals": [
        {"suite": "clean", "every": EVALUATE_EVERY, "num_images": 20},
        {
            **{"attack": "pgd", "norm": "linf", "eps": "8/255", "step_size": "2/255", "steps": 3},
            **{"every": EVALUATE_EVERY, "num_images": 20},
        },
    ],
    "run": {"epochs": EPOCHS, "batch_size": 8, "report_every": 3, "checkpoint_every": 20},
}


def entries_of_run(
    launch: Launch, few_digits: Path, val: Path, folder: Path, devices: int
) -> list[dict[str, Any]]:
    tree = RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits), "val": str(val)}}
    recipe = folder / "long.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    words = ["--num-devices", str(devices), "train", recipe, "--output", folder / "run"]
    done = launch("xla", *words, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return read_log(folder / "run/log.jsonl")


def growth(reports: list[dict[str, Any]], name: str, since: int) -> list[int]:
    """By how much a counter grew from each report to the next, from the first one behind update `since` on."""
    return [b[name] - a[name] for a, b in pairwise(reports) if a["step"] > since]


def events_after(before: dict[str, Any], after: dict[str, Any], every: int) -> int:
    """How many multiples of `every` there are from the update of one report to that of the next, which is left out."""
    return sum(step % every == 0 for step in range(before["step"], after["step"]))


def unexplained_reads(reports: list[dict[str, Any]]) -> dict[str, set[int]]:
    """Reads between two reports that are not those of the reports, by what else lies there: a checkpoint, an
    evaluation, or nothing.

    A report's totals, and the pictures of an epoch's first report behind them, are one read each. It waits until the
    next ones come, or until a checkpoint or an evaluation wants everything to be read.
    """
    found: dict[str, set[int]] = {"checkpoint": set(), "evaluation": set(), "nothing": set()}
    waiting, epoch = 0, -1
    for before, after in pairwise(reports):
        shown = before["step"] // UPDATES_PER_EPOCH > epoch
        epoch = before["step"] // UPDATES_PER_EPOCH
        reads, waiting = waiting + shown, 1
        checkpoints = events_after(before, after, RECIPE["run"]["checkpoint_every"])
        evaluations = events_after(before, after, EVALUATE_EVERY * UPDATES_PER_EPOCH)
        if checkpoints or evaluations:
            reads, waiting = reads + waiting, 0
        kind = "evaluation" if evaluations else "checkpoint" if checkpoints else "nothing"
        found[kind].add(after["host_reads"] - before["host_reads"] - reads)
    return found


def num_tensors(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return sum(map(num_tensors, value))
    return int(isinstance(value, torch.Tensor))


@pytest.mark.slow
@pytest.mark.timeout(1900)
@pytest.mark.parametrize("devices", [1, 4])
def test_a_whole_training_compiles_and_reads_nothing_of_itself(
    devices: int,
    launch: Launch,
    few_digits: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_backend_optimization_level=0"
    )  # the same graphs, compiled without care
    entries = entries_of_run(launch, few_digits, digits / "val", tmp_path, devices)
    reports = [entry for entry in entries if entry["event"] == "train"]
    assert reports[-1]["step"] == NUM_UPDATES
    assert sum(entry["event"] == "eval" for entry in entries) == 4 * (EPOCHS // EVALUATE_EVERY + 1)
    assert len({entry["lr"] for entry in reports}) > 30
    assert len({entry["eps"] for entry in reports}) > 10
    first, last = EVALUATE_EVERY * UPDATES_PER_EPOCH, reports[-1]
    assert sum(growth(reports, "compiles", since=3)) == sum(growth(reports, "compiles", since=first - 3))
    assert sum(growth(reports, "compiles", since=first)) == 0
    assert last["fallbacks"] == 0
    tensors = num_tensors(latest_checkpoint(tmp_path / "run/checkpoints")[1])  # type: ignore[index]
    reads = unexplained_reads(reports)
    assert reads["nothing"] == {0}
    # A checkpoint also asks how many updates were left out, before it calls itself healthy.
    assert reads["checkpoint"] == {tensors + 1}
    assert len(reads["evaluation"]) == 1, f"evaluations of one kind read as much each time: {reads}"
    executes = sum(growth(reports, "executes", since=first))
    print(
        f"{devices} devices: {last['compiles']} compiles in {last['compile_ms'] / 1000:.1f} s, the last before update "
        f"{first + 1}; then {NUM_UPDATES - first} updates of 2 micro-batches: 0 compiles, 0 fallbacks, 0 reads but "
        f"{tensors} a checkpoint, {reads['evaluation']} an evaluation, 1 a report; {executes} executions"
    )
