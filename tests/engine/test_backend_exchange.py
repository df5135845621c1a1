"""A run goes on on another backend: cpu and XLA on one and two devices read each other's checkpoints bit for bit.

Each backend trains eight updates and keeps a checkpoint of the sixth. Another one goes on from that: what it saves
first is, tensor for tensor, what it read (weights, average, optimizer, place in the data), and its next update has
the loss that the writer's next update had.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import load_checkpoint
from engine.log import read_log

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
SAVED, LAST = 6, 8
RECIPE: dict[str, Any] = {
    "data": {"image_size": 16, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1", "erase_prob": 0.5},
    "model": {"name": "small_cnn", "norm_stats": "ghost:4", "args": {"act_layer": "gelu"}},
    "optim": {
        **{"lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "clip_norm": 1.0},
        **{"ema": 0.9, "ema_warmup": True},
    },
    "objective": {
        **{"kind": "adversarial", "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0},
        "attack": {"norm": "linf", "eps": "16/255", "step_size": "16/255", "steps": 1, "clean_prob": 0.2},
    },
    "run": {"epochs": 5, "batch_size": 8, "report_every": 1, "checkpoint_every": SAVED, "max_steps": LAST},
}
BACKENDS: dict[str, tuple[str, list[str]]] = {
    "cpu x1": ("gpu", ["--cpu"]),
    "cpu x2": ("gpu", ["--cpu", "--num-processes", "2"]),
    "xla x1": ("xla", []),
    "xla x2": ("xla", ["--num-devices", "2"]),
}


class Runs:
    """Runs of one recipe, those from the beginning made once a backend."""

    def __init__(self, launch: Launch, recipe: Path) -> None:
        self._launch, self._recipe, self._folder = launch, recipe, recipe.parent

    def whole(self, backend: str) -> Path:
        folder = self._folder / backend.replace(" ", "-")
        return folder if folder.exists() else self._train(backend, folder)

    def resumed(self, writer: str, reader: str) -> Path:
        checkpoint = self.whole(writer) / f"checkpoints/step-{SAVED:08d}.pt"
        folder = self._folder / f"{writer} to {reader}".replace(" ", "-")
        return self._train(reader, folder, "--resume", str(checkpoint))

    def _train(self, backend: str, folder: Path, *words: str) -> Path:
        kind, flags = BACKENDS[backend]
        done = self._launch(kind, *flags, "train", self._recipe, *words, "--output", folder)
        assert done.returncode == 0, done.stderr[-2000:]
        return folder


@pytest.fixture(scope="module")
def runs(launch: Launch, few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    recipe = tmp_path_factory.mktemp("exchange") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], "train": str(few_digits)}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "XLA_FLAGS", "--xla_backend_optimization_level=0"
        )  # the same graphs, compiled without care
        yield Runs(launch, recipe)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(entry, f"{path}/{key}")
    else:
        yield path, value


def state(folder: Path) -> dict[str, Any]:
    return dict(leaves(load_checkpoint(folder / f"checkpoints/step-{SAVED:08d}.pt")))


def losses(folder: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(folder / "log.jsonl") if e["event"] == "train"}


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        ("xla x2", "cpu x1"),
        ("cpu x1", "xla x2"),
        pytest.param("xla x1", "cpu x2", marks=pytest.mark.slow),
        pytest.param("cpu x2", "xla x1", marks=pytest.mark.slow),
        pytest.param("xla x1", "xla x2", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_from_one_backend_to_another(writer: str, reader: str, runs: Runs) -> None:
    resumed, whole = runs.resumed(writer, reader), runs.whole(writer)
    found, wanted = state(resumed), state(whole)
    assert found.keys() == wanted.keys()
    assert {name.split("/")[1] for name in found} >= {
        "model",
        "optimizer",
        "ema",
        "step",
        "epoch",
        "consumed",
    }
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name
    # The same images, draws and noise, or the losses would differ by more than rounding.
    ours, theirs = losses(resumed), losses(whole)
    assert sorted(ours) == [SAVED + 1, LAST]
    assert ours[SAVED + 1] == pytest.approx(theirs[SAVED + 1], abs=1e-5)
    assert ours[LAST] == pytest.approx(theirs[LAST], abs=1e-3)
    assert abs(theirs[SAVED + 1] - theirs[LAST]) > 1e-3, "another batch would have shown"
