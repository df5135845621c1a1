"""What `eval` and `attack` measure: a run folder, a checkpoint in one, an exported file, or weights from elsewhere."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import latest_checkpoint, load_checkpoint, read_meta
from engine.exported import SUFFIX, load_exported
from engine.folder import RunFolder
from engine.foreign import Stated, open_foreign
from engine.recipe import Recipe
from engine.sources import numbered
from models.hub import is_hub_name
from models.load import place_weights
from models.weight_container import FORMAT_KEY
from models.weights import read_weights

FORMS = "a run folder, a checkpoint in one (.pt), an exported file (.safetensors), or any weights with --model NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trained model that is not built yet."""

    path: Path
    recipe: Recipe  # of the training
    classes: list[str]
    state: dict[str, Any]  # weights under "model" and, where an average was kept, "ema"
    weights: str  # "raw" or "ema": which of them count
    output: RunFolder  # where results go unless the user says otherwise
    is_run: bool  # whether `output` is the run itself, which has more in it than results
    is_foreign: bool = False  # weights from elsewhere: no recipe of ours trained them

    @property
    def recipe_hash(self) -> str:
        """Of the training; empty where nobody knows."""
        return "" if self.is_foreign else self.recipe.hash

    def load_into(self, model: nn.Module) -> str | None:
        """Puts the weights into a model that the recipe built; for those from elsewhere, what was done to them in
        words. ValueError where they do not fit.
        """
        if self.is_foreign:
            return str(place_weights(model, self.state["model"], source=str(self.path)))
        try:
            model.load_state_dict(self.state["model" if self.weights == "raw" else "ema"])
        except (RuntimeError, KeyError) as error:
            # torch lists every name that does not fit; the first line of it says which model.
            raise ValueError(
                f"{self.path}: the weights do not fit the recipe's model ({str(error).splitlines()[0]}); "
                "were they saved by another version of the toolkit? train again"
            ) from None
        return None


def open_subject(path: Path, *, weights: str, stated: Stated | None = None) -> Subject:
    """The model at `path`; `weights` as the user asked, `stated` what they say of weights from elsewhere, for which
    no folder holds results. ValueError in one line for anything else.
    """
    if is_hub_name(str(path)):
        return _open_foreign(path, weights, stated or Stated())
    if stated and path.is_dir():
        raise ValueError(
            f"{path} is a run, whose recipe says all about its model; drop --model and what goes with it"
        )
    if path.suffix == SUFFIX and FORMAT_KEY in read_weights(path).metadata:
        if stated:
            raise ValueError(
                f"{path} is an export and says all about its model; drop --model and what goes with it"
            )
        return _open_exported(path, weights)
    folder = RunFolder(path.parent.parent if path.suffix == ".pt" else path)
    is_recipe = path.suffix in (".yaml", ".yml")  # of a training, given in place of its run
    if stated or (path.is_file() and not is_recipe and not folder.recipe.is_file()):
        return _open_foreign(path, weights, stated or Stated())
    if not folder.recipe.is_file():
        raise ValueError(
            f"{path} is no run folder, nor a checkpoint in one (no {folder.recipe}); give {FORMS}"
        )
    recipe = folder.read_recipe()
    classes, state = find_weights(path)
    if weights == "ema" and "ema" not in state:
        raise ValueError(f"{path} keeps no average of its weights (optim.ema was off); use --weights raw")
    return Subject(
        path=path, recipe=recipe, classes=classes, state=state, weights=weights, output=folder, is_run=True
    )


def _open_exported(path: Path, weights: str) -> Subject:
    """An exported file holds one kind of weights, so `raw`, the flag's default, means those."""
    found = load_exported(path)
    if weights == "ema" and found.weights != "ema":
        raise ValueError(
            f"{path} holds {found.weights} weights; drop --weights, or export with --weights ema"
        )
    return Subject(
        path=path,
        recipe=found.recipe,
        classes=found.classes,
        state=dict(found.state),
        weights=found.weights,
        output=RunFolder(path.with_suffix("")),
        is_run=False,
    )


def _open_foreign(path: Path, weights: str, stated: Stated) -> Subject:
    found = open_foreign(path, stated, use_ema=weights == "ema")
    return Subject(
        path=path,
        recipe=found.recipe,
        classes=list(numbered(found.num_classes)),
        state={"model": found.state},  # also where it is an average
        weights=found.weights,
        output=RunFolder(path.with_suffix("")),
        is_run=False,
        is_foreign=True,
    )


def find_weights(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Class names and state: of a run's newest usable checkpoint, or of the checkpoint file given."""
    if path.suffix == ".pt":
        checkpoint, state = read_meta(path), load_checkpoint(path)
    else:
        found = latest_checkpoint(RunFolder(path).checkpoints)
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet; train it first")
        checkpoint, state, passed_over = found
        for line in passed_over if os.environ.get("RANK", "0") == "0" else []:
            print(f"passed over: {line}", file=sys.stderr)
    try:
        return list(checkpoint.facts["classes"]), state
    except (KeyError, TypeError):
        raise ValueError(
            f"{checkpoint.path.with_suffix('.json')} does not name the classes; use an earlier checkpoint"
        ) from None
