"""An exported weight file: what it says about itself, and reading it back as if it were a run."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from engine.recipe import Recipe, parse_recipe
from engine.verdict import weights_hash
from models.hub import is_hub_name
from models.weight_container import WeightFileError
from models.weight_export import json_value, read_exported

SUFFIX = ".safetensors"


class Exported(NamedTuple):
    """What an evaluation needs of an exported file."""

    recipe: Recipe  # of the training, without its paths and evaluations: data.val is None
    classes: list[str]
    state: dict[
        str, Mapping[str, Tensor]
    ]  # as in a checkpoint: "model", and "ema" where these are averaged weights
    weights: str  # "raw" or "ema"
    step: int


def load_exported(path: Path) -> Exported:
    """The model in `path`, which `weights export` wrote. ValueError in one line for any other or an altered file."""
    state, facts = read_exported(path)
    if facts.get("weights_sha256") != weights_hash(state):
        raise WeightFileError(f"{path}: its tensors are not those that were exported; export it again")
    tree, classes = json_value(facts, "recipe", path), json_value(facts, "classes", path)
    if not isinstance(tree, dict) or not isinstance(classes, list):
        raise WeightFileError(f"{path}: its metadata has no usable 'recipe' or 'classes'; export it again")
    weights = facts.get("weights", "raw")
    return Exported(
        recipe=parse_recipe(tree, f"{path}: recipe"),
        classes=[str(name) for name in classes],
        state={"model": state} if weights == "raw" else {"model": state, weights: state},
        weights=weights,
        step=int(facts.get("step", "0")),
    )


def describe_export(
    recipe: Recipe,
    state: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    step: int,
    weights: str,
    dataset_id: str,
) -> dict[str, str]:
    """The metadata of an export: all that an evaluation needs beside images. Values are text, as the format asks."""
    return {
        "toolkit_version": toolkit_version(),
        "model": recipe.model.name,
        "num_classes": str(len(classes)),
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "image_size": str(recipe.data.image_size),
        "mean": json.dumps(recipe.model.mean),
        "std": json.dumps(recipe.model.std),
        "step": str(step),
        "weights": weights,
        "weights_sha256": weights_hash(state),
        "recipe": json.dumps(portable_recipe(recipe).model_dump(mode="json"), ensure_ascii=False),
        "recipe_hash": recipe.hash,
        "dataset_id": dataset_id,
    }


def portable_recipe(recipe: Recipe) -> Recipe:
    """The recipe without what belongs to one machine: where data and runs lie, and which evaluations were made.

    Its hash is the same: none of that decides an update.
    """
    tree = recipe.model_dump(mode="json")
    # Of a URL neither the host nor a token in its query.
    train = recipe.data.train.partition("?")[0].rstrip("/").rpartition("/")[2]
    tree["data"] |= {"train": train or "train", "val": None, "suites": None, "cache": None}
    tree["run"] |= {"output": None, "best": None}
    for section, field in ((tree["model"]["init"], "path"), (tree["objective"]["distill"], "teacher")):
        if section is not None and not is_hub_name(section[field]):
            section[field] = section[field].rstrip("/").rpartition("/")[2] or field
    portable = parse_recipe(tree | {"evals": []}, "recipe")
    assert portable.hash == recipe.hash, "a path decides an update"
    return portable


def toolkit_version() -> str:
    """Of the installed package; "unknown" where the checkout was never installed."""
    try:
        return packages.version("robust-bits")
    except packages.PackageNotFoundError:
        return "unknown"
