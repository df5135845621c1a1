"""`load_weights(model, path)`: any weight file into a model, and a report of what was done to it on the way.

A file may be a state dict, a checkpoint with one inside (raw or averaged), an export, safetensors, with or without the
prefixes of wrappers, or a name of timm's ("timm:NAME", "hf-hub:ORG/NAME"), which is fetched. All of the model is
loaded or nothing: what does not fit is one ValueError, and the model is as it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.hub import fetch, is_hub_name
from models.load_names import (
    Renamed,
    State,
    bare_names,
    inner_model,
    match_norms,
    resample_positions,
    timm_names,
)
from models.load_report import COUNTER, LoadReport, compare, misfit, some
from models.pixel import PixelModel
from models.weight_container import WeightFileError
from models.weight_facts import count_nonfinite
from models.weights import read_weights


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    use_ema: bool = False,
    reset_head: bool = False,
    average_groups: bool = False,
) -> LoadReport:
    """Puts the weights at `path` into `model`, a PixelModel or a classifier of timm's.

    `use_ema` takes the average of the weights that a file keeps; `reset_head` leaves the model's own head, whatever
    the file has; `average_groups`: ghost norms become plain by the average of their groups instead of group 0. Not
    `strict`, what fits is loaded and the report names the rest. WeightFileError (a ValueError) in one line for a file
    that cannot be read or does not fit, or that holds values which are not finite.
    """
    if is_hub_name(str(path)):
        if use_ema:
            raise WeightFileError(f"{path}: timm's names have one kind of weights; use --weights raw")
        state, layout = fetch(str(path)).state, "timm"
    else:
        found = read_weights(Path(path), use_ema=use_ema)
        state, layout = dict(found.state), found.layout
    report = place_weights(
        model, state, source=str(path), strict=strict, reset_head=reset_head, average_groups=average_groups
    )
    return replace(report, layout=layout)


def place_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    strict: bool = True,
    reset_head: bool = False,
    average_groups: bool = False,
) -> LoadReport:
    """As load_weights, for a state dict in memory; `source` begins the one line of an error."""
    inner = inner_model(model)
    target = inner.state_dict()
    head = _head_names(inner, target)
    try:
        renamed, pixel = _prepare(inner, state, target, average_groups=average_groups)
        fresh, notes = renamed.state, [*renamed.notes, *_pixel_notes(model, pixel)]
        if reset_head:
            fresh = {name: tensor for name, tensor in fresh.items() if name not in head}
            notes.append(f"the head ({some(head)}) keeps its initial values")
        report = compare(fresh, target, source, notes)
        _check_finite({**fresh, **pixel})
        if strict and (problem := misfit(report, fresh, target, head, reset_head=reset_head)):
            raise ValueError(problem)
    except ValueError as error:
        raise WeightFileError(f"{source} {error}") from None
    _copy(inner, fresh, report)
    if isinstance(model, PixelModel):
        _copy_pixel(model, pixel)
    return report


def _prepare(
    inner: nn.Module, state: Mapping[str, Tensor], target: State, *, average_groups: bool
) -> tuple[Renamed, State]:
    """`state` under the names and in the forms of `inner`, and the file's own mean and std where it has them."""
    renamed, pixel = bare_names(state, target)
    _check_pixel(pixel)
    normed = match_norms(renamed.state, target, average=average_groups)
    placed = resample_positions(normed.state, inner, target)
    named = timm_names(placed.state, inner)
    notes = (*renamed.notes, *normed.notes, *placed.notes, *named.notes)
    return Renamed(named.state, notes), pixel


def count_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Classes of the head in `state`, a file for a model like `model`, of any number of classes; None where it has
    no head under the model's names. ValueError for a state dict of mixed names."""
    inner = inner_model(model)
    target = inner.state_dict()
    bare, _ = bare_names(state, target)
    heads = [name for name in _head_names(inner, target) if name.endswith("weight") and name in bare.state]
    return int(bare.state[heads[0]].shape[0]) if heads else None


# ---- the parts


def _head_names(inner: nn.Module, target: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the tensors behind get_classifier(), which may be two heads."""
    getter: Any = getattr(inner, "get_classifier", None)
    found = getattr(inner, "head", None) if getter is None else getter()
    heads = list(found) if isinstance(found, tuple | list) else [found]
    paths = [path for path, module in inner.named_modules() if path and any(module is head for head in heads)]
    return tuple(name for name in target if name.startswith(tuple(f"{path}." for path in paths)))


def _check_pixel(pixel: Mapping[str, Tensor]) -> None:
    fits = all(tensor.numel() == 3 for tensor in pixel.values())
    if pixel and not (fits and len(pixel) == 2 and bool((pixel["std"] > 0).all())):
        raise ValueError("holds a mean and std that are not 3 numbers each, std above 0; export it again")


def _pixel_notes(model: nn.Module, pixel: Mapping[str, Tensor]) -> list[str]:
    if not isinstance(model, PixelModel):
        return ["mean and std of the file not used, the model has none"] if pixel else []
    if pixel:
        return []
    mean, std = (tuple(round(value, 4) for value in t.flatten().tolist()) for t in (model.mean, model.std))
    return [f"the file has no mean and std; the model's stay: {mean}, {std}"]


def _check_finite(state: Mapping[str, Tensor]) -> None:
    bad = {name: count for name, tensor in state.items() if (count := count_nonfinite(tensor))}
    if bad:
        raise ValueError(
            f"holds {sum(bad.values())} values that are not finite ({some(list(bad))}); its training diverged, or "
            "the file is damaged; use another one"
        )


@torch.no_grad()
def _copy(inner: nn.Module, state: State, report: LoadReport) -> None:
    left = {*report.unexpected, *report.mismatched}
    inner.load_state_dict({name: t for name, t in state.items() if name not in left}, strict=False)
    for name, tensor in inner.state_dict().items():
        if name.endswith(COUNTER) and name not in state:
            tensor.zero_()


@torch.no_grad()
def _copy_pixel(model: PixelModel, pixel: Mapping[str, Tensor]) -> None:
    for name, tensor in pixel.items():
        getattr(model, name).copy_(tensor.reshape(1, 3, 1, 1))
