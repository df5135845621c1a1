"""Somebody's weights as something to measure: a file, or a name of timm's, and the model that they are for.

What a run's recipe says (image size, normalisation, resize) comes from timm's default configuration of the model;
`key=value` words of a recipe's `model` and `data` replace it. Class names are in no such file, so the classes of the
shards are taken for the model's, and only their number is compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.build import check_model
from engine.override import Tree, apply_overrides
from engine.recipe import Recipe, parse_recipe
from models.defaults import Defaults, model_defaults
from models.hub import fetch, is_hub_name
from models.load import count_classes
from models.pixel import PixelModel
from models.registry import create_model
from models.weight_container import WeightFileError
from models.weights import read_weights

RESIZE = {"center": "crop", "squash": "squash", "border": "crop"}  # timm's crop_mode -> data.eval_resize
BATCH = 64  # images; --batch-size
NAME = "model"  # in the metadata of a converted file


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What the user says of the weights."""

    model: str | None = None  # None: what the file says of itself
    image_size: int | None = None
    num_classes: int | None = None  # None: those of the file's head
    words: Sequence[str] = ()  # key=value of a recipe, over all else

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.model, self.image_size, self.num_classes)) or bool(
            self.words
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Weights from elsewhere, and a recipe that builds their model."""

    recipe: Recipe
    num_classes: int
    state: Mapping[str, Tensor]  # as in the file
    weights: str  # "raw" or "ema"


def open_foreign(path: Path, stated: Stated, *, use_ema: bool) -> Foreign:
    """The weights at `path`, or of timm's name `path`. ValueError in one line where they cannot be measured."""
    if is_hub_name(str(path)):
        return _fetched(str(path), stated, use_ema=use_ema)
    found = read_weights(path, use_ema=use_ema)
    model = stated.model or found.metadata.get(NAME)
    if model is None:
        raise WeightFileError(
            f"{path} does not say which model it belongs to, and lies in no run folder; name it: --model NAME "
            "(`list models` shows them)"
        )
    weights = "ema" if use_ema or found.metadata.get("weights") == "ema" else "raw"
    return as_foreign(found.state, model, stated, source=str(path), weights=weights)


def as_foreign(
    state: Mapping[str, Tensor],
    model: str,
    stated: Stated,
    *,
    source: str,
    weights: str = "raw",
    defaults: Defaults | None = None,
) -> Foreign:
    """`state` for the model named `model`, with the number of classes of its head unless one is stated; whether it
    fits is seen when it is loaded. ValueError, which begins with `source`, where that number cannot be told.
    """
    recipe = _recipe(Path(source).stem, model, defaults or model_defaults(model), stated)
    try:
        num_classes = stated.num_classes or count_classes(check_model(recipe), state)
    except ValueError as error:
        raise WeightFileError(f"{source}: {error}") from None
    if num_classes is None:
        raise WeightFileError(
            f"{source} has no head under the names of {model}; is it the right --model? else say how many classes it "
            "has: --num-classes K"
        )
    data = recipe.data.model_copy(update={"num_classes": num_classes})
    recipe = recipe.model_copy(update={"data": data})
    return Foreign(recipe=recipe, num_classes=num_classes, state=state, weights=weights)


def build_foreign(found: Foreign) -> PixelModel:
    """Its model on the cpu, without its weights."""
    args: dict[str, Any] = dict(found.recipe.model.args)
    return create_model(
        found.recipe.model.name,
        num_classes=found.num_classes,
        image_size=found.recipe.data.image_size,
        mean=found.recipe.model.mean,
        std=found.recipe.model.std,
        **args,
    )


def _fetched(name: str, stated: Stated, *, use_ema: bool) -> Foreign:
    if use_ema:
        raise ValueError(f"{name} has one kind of weights; drop --weights")
    if stated.model is not None:
        raise ValueError(f"{name} says which model it is; drop --model {stated.model}")
    found = fetch(name)
    args = [f"model.args.{key}={json.dumps(value)}" for key, value in found.args.items()]
    own = replace(stated, words=[*args, *stated.words])
    return as_foreign(found.state, found.model, own, source=name, defaults=found.defaults)


def _recipe(name: str, model: str, defaults: Defaults, stated: Stated) -> Recipe:
    """A recipe for evaluation alone: what it says of training means nothing."""
    for word in stated.words:
        if not word.startswith(("model.", "data.")) or word.startswith(("data.train", "model.name")):
            raise ValueError(
                f"{word} cannot be set for weights from elsewhere; only fields of model and data that decide what "
                "the model sees, such as data.crop_pct=0.9"
            )
    tree: Tree = {
        "name": name,
        "data": {
            # As of a stream, whose class list nobody knows: evaluations then compare numbers of classes.
            **{"train": "elsewhere.tar", "indexed": False, "epoch_images": BATCH},
            "image_size": stated.image_size or defaults.image_size,
            "num_classes": stated.num_classes or defaults.num_classes,
            "eval_resize": RESIZE.get(defaults.crop_mode, "crop"),
            "crop_pct": min(1.0, defaults.crop_pct),
            "interpolation": defaults.interpolation,
        },
        "model": {"name": model, "mean": list(defaults.mean), "std": list(defaults.std)},
        "optim": {"lr": 1.0},
        "run": {"epochs": 1, "batch_size": BATCH},
    }
    return parse_recipe(apply_overrides(tree, stated.words), f"--model {model}")
