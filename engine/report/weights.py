"""Whose weights the results are about: hashes of the run's checkpoints, without a model."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from bits.checkpoint import BEST, list_checkpoints
from engine.folder import RunFolder
from engine.report.facts import EMA, RAW, Evaluation
from engine.verdict import weights_hash

_STATES = {RAW: "model", EMA: "ema"}


def weights_warnings(
    folder: RunFolder, evaluations: Sequence[Evaluation], trained: Sequence[str]
) -> list[str]:
    """One line for each set of weights that was evaluated and is not in the newest checkpoint; `trained` are the
    recipes of the training."""
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.epoch is None:
            found.setdefault((evaluation.weights, evaluation.weights_sha256), []).append(evaluation)
    paths = [*reversed(list_checkpoints(folder.checkpoints)), *folder.checkpoints.glob(BEST)]
    lines = [line for kind in (RAW, EMA) for line in _several(kind, found)]
    try:
        newest = checkpoint_hashes(paths[0]) if paths and found else {}
    except (OSError, ValueError) as error:
        lines.append(f"the newest checkpoint {paths[0].name} cannot be read: {error}")
        newest = {}
    for (kind, digest), own in found.items():
        if newest.get(kind) != digest:
            lines += _elsewhere(kind, digest, own, paths, trained)
    return lines


def _several(kind: str, found: Mapping[tuple[str, str], list[Evaluation]]) -> Iterator[str]:
    groups = [_files(own) for (name, _), own in found.items() if name == kind]
    if len(groups) > 1:
        yield f"its results are about {len(groups)} different {kind} weights: {' | '.join(groups)}"


def _files(evaluations: Sequence[Evaluation]) -> str:
    return ", ".join(e.file for e in evaluations)


def _elsewhere(
    kind: str, digest: str, own: Sequence[Evaluation], paths: Sequence[Path], trained: Sequence[str]
) -> Iterator[str]:
    holder = next((path for path in paths[1:] if _holds(path, kind, digest)), None)
    if holder is not None:
        yield (
            f"{_files(own)}: measured on the {kind} weights of {holder.name}, not on those of the newest checkpoint "
            f"{paths[0].name}"
        )
        return
    if paths:
        yield f"{_files(own)}: measured on {kind} weights that are in no checkpoint of this folder"
    # The hash of a recipe changes with the toolkit's version: it accuses nobody whose weights are here.
    if foreign := sorted({e.recipe for e in own if e.recipe and trained and e.recipe not in trained}):
        yield (
            f"{_files(own)}: foreign results, they name recipe {', '.join(foreign)}, but the run was trained with "
            f"{', '.join(trained)}"
        )


def _holds(path: Path, kind: str, digest: str) -> bool:
    try:
        return checkpoint_hashes(path).get(kind) == digest
    except (OSError, ValueError):
        return False


def checkpoint_hashes(path: Path) -> dict[str, str]:
    """sha256 of the weights (raw, ema) in a checkpoint file. ValueError in one line when it is none."""
    try:
        # Mapped, so that only the weights are read: the optimizer's state is twice as large.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    states = {kind: state.get(name) for kind, name in _STATES.items()} if isinstance(state, dict) else {}
    return {kind: weights_hash(value) for kind, value in states.items() if _is_weights(value)}


def _is_weights(value: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values())
