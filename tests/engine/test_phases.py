"""Training in phases of image size: which loader serves which epoch, resumption inside any of them, what is refused."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bits.checkpoint import latest_checkpoint
from bits.environment import open_environment
from data.index import load_index
from data.loader import train_loader
from data.order import Cursor
from engine.build import augment_settings, batch_layout, check_model, mix_settings
from engine.loading import build_train_loader
from engine.log import read_log
from engine.phases import Phase, phases_of
from engine.recipe import Recipe, load_recipe, parse_recipe

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
BATCH, UPDATES_PER_EPOCH = 16, 4
TREE: dict[str, Any] = {
    "data": {"image_size": 24, "sizes": [[0, 16], [1, 20], [3, 24]], "num_workers": 0},
    "model": {"name": "small_cnn", "norm_stats": "ghost:4", "drop_path": 0.3},
    "optim": {"lr": 2e-3, "weight_decay": 0.05, "warmup_epochs": 1, "ema": 0.9, "ema_warmup": True},
    "objective": {
        "kind": "adversarial",
        "mixup": 0.8,
        "cutmix": 1.0,
        "attack": {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 3},
        "warmup": {"steps": [[0, 1], [1, 2], [2, 3]], "mix_prob": [[0, 0.0], [2, 1.0]]},
    },
    "run": {"epochs": 4, "batch_size": BATCH, "report_every": 1, "checkpoint_every": 1},
}


def with_data(train: str | Path, **data: Any) -> dict[str, Any]:
    return TREE | {"data": {**TREE["data"], "train": str(train), **data}}


def test_phases_cover_the_run() -> None:
    assert phases_of(parse_recipe(with_data("unused"))) == (
        Phase(first=0, end=1, image_size=16),
        Phase(first=1, end=3, image_size=20),
        Phase(first=3, end=4, image_size=24),
    )
    assert phases_of(parse_recipe(with_data("unused", sizes=None))) == (Phase(first=0, end=4, image_size=24),)


def batches(recipe: Recipe, start: Cursor, said: list[str] | None = None) -> list[tuple[Cursor, Any]]:
    env, index = open_environment("cpu"), load_index(recipe.data.train)
    layout = batch_layout(BATCH, env)
    say = None if said is None else said.append
    return list(build_train_loader(recipe, env, index, layout=layout, start=start, say=say))


def test_every_epoch_has_the_batches_of_its_size(few_digits: Path) -> None:
    """Epoch by epoch those of a loader of that size alone: order, seeds and draws do not know of phases."""
    recipe, said = parse_recipe(with_data(few_digits)), []
    found = batches(recipe, Cursor(0, 0), said)
    assert [batch.image.shape[-1] for _, batch in found] == [16] * 4 + [20] * 8 + [24] * 4
    assert [line.partition(";")[0] for line in said] == [
        "epoch 0: images of 16 px until epoch 1",
        "epoch 1: images of 20 px until epoch 3",
        "epoch 3: images of 24 px until epoch 4",
    ]
    whole = list(
        train_loader(
            load_index(few_digits),
            seed=0,
            global_batch=BATCH,
            rank=0,
            world_size=1,
            start=Cursor(0, 0),
            num_epochs=4,
            image_size=20,
            transform_of_epoch=[augment_settings(recipe, epoch) for epoch in range(4)],
            mix_of_epoch=[mix_settings(recipe, epoch) for epoch in range(4)],
            num_workers=0,
        )
    )
    assert [cursor for cursor, _ in found] == [cursor for cursor, _ in whole]
    for (_, batch), (_, wanted) in zip(found[4:12], whole[4:12], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))
    for (_, batch), (_, wanted) in zip(found, whole, strict=True):
        assert torch.equal(batch.key, wanted.key)


@pytest.mark.parametrize("number", [0, 3, 4, 6, 12, 15])
def test_a_start_anywhere_gives_what_is_left(number: int, few_digits: Path) -> None:
    recipe = parse_recipe(with_data(few_digits))
    whole = batches(recipe, Cursor(0, 0))
    start = whole[number - 1][0] if number else Cursor(0, 0)
    left = batches(recipe, start)
    assert [cursor for cursor, _ in left] == [cursor for cursor, _ in whole[number:]]
    for (_, batch), (_, wanted) in zip(left, whole[number:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))


# ---- runs


def train(launch: Launch, recipe: Path, output: Path, *words: str, kind: str = "gpu") -> str:
    device = ["--cpu"] if kind == "gpu" else []
    done = launch(kind, *device, "train", recipe, *words, "--output", output)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def state(output: Path) -> dict[str, Any]:
    found = latest_checkpoint(output / "checkpoints")
    assert found is not None
    return found[1]


def recipe_file(few_digits: Path, folder: Path) -> Path:
    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump(with_data(few_digits)))
    return path


def test_a_run_resumed_in_every_phase_ends_with_the_same_bits(
    launch: Launch, few_digits: Path, tmp_path: Path
) -> None:
    """In the middle of the warm-ups, of the average's too."""
    recipe = recipe_file(few_digits, tmp_path)
    said = train(launch, recipe, tmp_path / "whole")
    assert "epoch 1: images of 20 px until epoch 3" in said
    for stop in (2, 9):
        train(launch, recipe, tmp_path / "parts", f"run.max_steps={stop}")
    train(launch, recipe, tmp_path / "parts")
    found, wanted = state(tmp_path / "parts"), state(tmp_path / "whole")
    assert found["step"] == wanted["step"] == 4 * UPDATES_PER_EPOCH
    for part in ("model", "ema"):
        for name, tensor in wanted[part].items():
            assert torch.equal(found[part][name], tensor), f"{part} {name}"
    entries = [entry for entry in read_log(tmp_path / "parts/log.jsonl") if entry["event"] == "train"]
    # The values of the update that ends an epoch are those of that epoch.
    assert [entry["steps"] for entry in entries] == [1] * 4 + [2] * 4 + [3] * 8


def test_xla_compiles_at_the_begin_of_a_phase_only(
    launch: Launch, few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither the number of attack steps nor the average's weight is a graph."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    recipe = recipe_file(few_digits, tmp_path)
    # No pictures: of each size their copy would be one more graph, at the end of the size's first epoch.
    train(launch, recipe, tmp_path / "run", "run.preview_images=0", kind="xla")
    entries = [entry for entry in read_log(tmp_path / "run/log.jsonl") if entry["event"] == "train"]
    assert {entry["fallbacks"] for entry in entries} == {0}
    assert [entry["steps"] for entry in entries] == [1] * 4 + [2] * 4 + [3] * 8
    counts = [entry["compiles"] for entry in entries]
    grew = {i + 1 for i in range(1, len(counts)) if counts[i] > counts[i - 1]}
    assert {5, 13} <= grew <= {2, 5, 6, 13, 14}, grew


# ---- what is refused


def refused(tree: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        check_model(parse_recipe(tree), num_classes=10)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sizes": [[0, 16], [2, 20]]}, ["ends at 20 px", "image_size is 24", "[2, 24]"]),
        ({"sizes": [[1, 16], [2, 24]]}, ["must begin at epoch 0"]),
        ({"sizes": [[0, 16], [2, 20], [2, 24]]}, ["each must come after the last"]),
        ({"sizes": [[0, 16], [4, 24]]}, ["a phase at epoch 4", "run.epochs is 4"]),
        ({"sizes": [[0, 16], [1, 24], [2, 24]]}, ["does not change the size at epoch 2"]),
        ({"sizes": [[0, 0], [2, 24]]}, ["greater than 0"]),
        ({"sizes": []}, ["must begin at epoch 0"]),
    ],
)
def test_bad_sizes(data: dict[str, Any], words: list[str]) -> None:
    line = refused(with_data("unused", **data))
    assert not [word for word in words if word not in line], line


def test_a_model_of_one_size_is_refused_at_build() -> None:
    vit = with_data("unused") | {"model": {"name": "small_vit"}}
    assert "data.sizes has 16 px, which model 'small_vit' of 24 px does not take" in refused(vit)
    flexible = vit | {"model": {"name": "small_vit", "args": {"dynamic_img_size": True}}}
    model = check_model(parse_recipe(flexible), num_classes=10)
    assert model.training
    # 18 is no multiple of its patch, 4.
    odd = flexible | {"data": {**flexible["data"], "sizes": [[0, 18], [2, 24]]}}
    assert "data.sizes has 18 px" in refused(odd)


def test_a_training_is_refused_before_anything_is_written(
    launch: Launch, few_digits: Path, tmp_path: Path
) -> None:
    recipe = recipe_file(few_digits, tmp_path)
    words = ["model.name=small_vit", "model.norm_stats=local", "--output", tmp_path / "run"]
    done = launch("gpu", "--cpu", "train", recipe, *words)
    assert done.returncode == 2
    assert "does not take" in done.stderr
    assert not (tmp_path / "run").exists()
    assert load_recipe(recipe).data.sizes is not None
