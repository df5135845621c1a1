"""From a recipe's fields to the images that enter the model: the device's augmentation in its place."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from bits.environment import Environment, open_environment
from data.batch import NUM_DRAWS, Batch
from data.index import load_index
from data.loader import train_loader
from data.order import Cursor
from engine.build import augment_settings, batch_layout, build_augment, mix_settings
from engine.loading import build_train_loader
from engine.recipe import Recipe, parse_recipe
from engine.step import step_settings

ALL = {
    "randaug_on": "device",
    "color_jitter": 0.4,
    "color_jitter_on": "device",
    "erase_prob": 0.5,
    "erase_mode": "pixel",
}


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def make_recipe(shards: Path, **data: Any) -> Recipe:
    section = {"train": str(shards), "image_size": 24, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1"}
    return parse_recipe(
        {
            "name": "augment",
            "data": section | data,
            "model": {"name": "small_cnn"},
            "optim": {"lr": 1e-3},
            "objective": {"warmup": {"magnitude": [[0, 2], [1, 9]]}},
            "run": {"epochs": 2, "batch_size": 16},
        }
    )


def batches(recipe: Recipe, env: Environment, num: int) -> list[Batch]:
    index = load_index(Path(recipe.data.train))
    layout = batch_layout(recipe.run.batch_size, env)
    loader = build_train_loader(recipe, env, index, layout=layout, start=Cursor(0, 0))
    return [batch for _, batch in islice(loader, num)]


def entering(recipe: Recipe, env: Environment, num: int) -> torch.Tensor:
    augment = step_settings(recipe, 10).augment
    made = batches(recipe, env, num)
    return torch.cat([augment.before_mix(b.image, b.draw, b.seed) for b in made])


def test_host_and_device_agree_in_every_epoch(few_digits: Path, env: Environment) -> None:
    """Two epochs, so that the warm-up of the magnitude reaches the device."""
    host, device = make_recipe(few_digits), make_recipe(few_digits, randaug_on="device")
    wanted, found = entering(host, env, 8), entering(device, env, 8)
    plain = entering(_without(host), env, 8)
    assert (wanted != plain).flatten(1).any(1).float().mean() > 0.4
    assert ((found - wanted).abs() * 255 < 0.5).float().mean() > 0.97
    assert (found - wanted).abs().mean() * 255 < 0.5


def _without(recipe: Recipe) -> Recipe:
    data = recipe.data.model_copy(update={"randaug": None})
    return recipe.model_copy(update={"data": data})


def test_graph_and_columns_are_those_of_every_epoch(few_digits: Path, env: Environment) -> None:
    recipe = make_recipe(few_digits, **ALL)
    made = batches(recipe, env, 8)
    assert {batch.draw.shape[1] for batch in made} == {NUM_DRAWS + 2 * 8 + 3 * 2 + 4}
    assert {batch.draw.shape[1] for batch in batches(make_recipe(few_digits), env, 2)} == {NUM_DRAWS}
    image = entering(recipe, env, 8)
    assert image.min() >= 0
    assert image.max() <= 1


def test_images_do_not_depend_on_the_layout(few_digits: Path, env: Environment) -> None:
    recipe = make_recipe(few_digits, **ALL)
    augment, index = build_augment(recipe), load_index(few_digits)
    whole = entering(recipe, env, 1)
    parts = []
    for rank in range(4):
        loader = train_loader(
            index,
            seed=recipe.run.seed,
            global_batch=16,
            rank=rank,
            world_size=4,
            start=Cursor(0, 0),
            num_epochs=2,
            image_size=24,
            transform_of_epoch=[augment_settings(recipe, epoch) for epoch in range(2)],
            mix_of_epoch=[mix_settings(recipe, epoch) for epoch in range(2)],
            num_workers=0,
        )
        _, batch = next(iter(loader))
        parts.append(augment.before_mix(batch.image, batch.draw, batch.seed))
    assert torch.equal(torch.cat(parts), whole)


def test_one_number_is_timms_color_jitter(few_digits: Path) -> None:
    jitter = augment_settings(make_recipe(few_digits, color_jitter=0.4), 0).jitter
    assert jitter is not None
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.4, 0.0)
    assert augment_settings(make_recipe(few_digits, color_jitter=[0, 0, 0]), 0).jitter is None


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"color_jitter": 0.4, "randaug_on": "device"}, "use color_jitter_on=device"),
        ({"color_jitter_on": "device"}, "data.color_jitter is null"),
    ],
)
def test_a_place_for_jitter_that_cannot_be_is_refused(
    few_digits: Path, fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_recipe(few_digits, **fields)


def test_device_without_randaug_is_refused(few_digits: Path) -> None:
    fields = {"randaug": None, "randaug_on": "device"}
    with pytest.raises(ValueError, match=r"data\.randaug_on is device, but data\.randaug is null"):
        make_recipe(few_digits, **fields)
