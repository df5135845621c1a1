"""Fields of training that contradict each other, and values that cannot be: one line each, and what is taken."""

from pathlib import Path

import pytest

from engine.recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes/quickstart/cnn_adv.yaml"
AGC = ["optim.clip_norm=null", "optim.clip_agc=0.01"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.update=late"], ["'step', 'epoch' or 'epoch_late'"]),
        (["optim.warmup_prefix=true"], ["'none', 'step' or 'all'"]),
        (["optim.lr_counts_accumulate=1"], ["true or false"]),
        (
            ["optim.lr_counts_accumulate=false", "optim.lr_base_batch=null"],
            ["lr_counts_accumulate is false", "lr_base_batch is null", "set it to true"],
        ),
        (["optim.scale_all_lr=true", "optim.lr_base_batch=null"], ["scale_all_lr is true"]),
        (["optim.layer_decay=0"], ["greater than 0"]),
        (["optim.layer_decay=1.5"], ["less than or equal to 1"]),
        (["optim.decay_norm_weight=yes"], ["true or false"]),
        (["optim.clip_agc=0", "optim.clip_norm=null"], ["greater than 0"]),
        (["optim.clip_agc=0.01", "optim.clip_norm=1.0"], ["two ways to clip", "null"]),
        ([*AGC, "model.trainable=head"], ["the classifier is what it leaves out", "clip_norm"]),
        (["optim.layer_decay=0.75", "model.trainable=head"], ["a single layer", "null"]),
        (["model.trainable=classifier"], ["'all' or 'head'"]),
        (["optim.ema_warmup=true", "optim.ema=null"], ["ema_warmup is true", "such as 0.9999"]),
        (["optim.ema_warmup=0.9", "optim.ema=0.9"], ["true or false"]),
        (["objective.warmup={steps: [[0, 0]]}"], ["greater than 0"]),
        (["objective.warmup={steps: [[0, 1.5]]}"], ["whole number"]),
        (["objective.warmup={steps: [[1, 1]]}"], ["must begin at epoch 0"]),
        (
            ["objective.warmup={steps: [[0, 1], [2, 9]]}", "objective.attack.steps=7"],
            ["warmup.steps goes up to 9", "attack.steps is 7"],
        ),
        (
            ["objective.warmup={steps: [[0, 1]]}", "objective.kind=clean", "objective.attack=null"],
            ["warmup.steps is given but has nothing to act on"],
        ),
        (
            ["objective.warmup={steps: [[0, 1]]}", "objective.kind=free", "objective.attack.steps=1"],
            ["warmup.steps is given", "kind is free", "drop it"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        load_recipe(RECIPE, overrides)
    line = str(error.value)
    assert "\n" not in line
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.update=epoch_late", "optim.warmup_prefix=all", "optim.schedule=step"],
        ["optim.lr_base_batch=256", "optim.lr_counts_accumulate=false", "optim.accumulate=4"],
        [*AGC, "optim.layer_decay=1", "optim.decay_norm_weight=true"],
        ["model.trainable=head", "optim.clip_norm=1.0", "optim.ema=0.9", "optim.ema_warmup=true"],
        ["objective.warmup={steps: [[0, 1], [2, 7]], interpolation: linear}", "objective.attack.steps=7"],
    ],
)
def test_what_can_be_is_taken(overrides: list[str]) -> None:
    assert load_recipe(RECIPE, overrides).optim.lr > 0
