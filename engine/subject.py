"""What `eval` and `attack` measure: a run folder, a checkpoint in one, or an exported weight file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import latest_checkpoint, load_checkpoint, read_meta
from engine.exported import SUFFIX, load_exported
from engine.folder import RunFolder
from engine.recipe import Recipe

FORMS = "a run folder, a checkpoint in one (.pt) or an exported file (.safetensors)"


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

    def load_into(self, model: nn.Module) -> None:
        """Puts the weights into a model that the recipe built. ValueError where they do not fit."""
        try:
            model.load_state_dict(self.state["model" if self.weights == "raw" else "ema"])
        except (RuntimeError, KeyError) as error:
            # torch lists every name that does not fit; the first line of it says which model.
            raise ValueError(
                f"{self.path}: the weights do not fit the recipe's model ({str(error).splitlines()[0]}); "
                "were they saved by another version of the toolkit? train again"
            ) from None


def open_subject(path: Path, *, weights: str) -> Subject:
    """The model at `path`; `weights` as the user asked. ValueError in one line for anything else."""
    if path.suffix == SUFFIX:
        return _open_exported(path, weights)
    folder = RunFolder(path.parent.parent if path.suffix == ".pt" else path)
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
