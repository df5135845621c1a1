"""Names in weight files -> names of a model: wrappers' prefixes, PixelModel's own, ghost norms, timm's older forms."""

import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from models.ghost_weights import ghost_state, plain_batchnorm_state
from models.pixel import PixelModel

INNER = "backbone."  # of PixelModel
PIXEL_BUFFERS = ("mean", "std")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile, in any order
FOREIGN_NORMS = re.compile(r"(^|\.)(proxy_bn|aff\.bnconv|auxiliary)\.")
State = dict[str, Tensor]


class Renamed(NamedTuple):
    """A state dict on its way to a model, and what was done to it in words."""

    state: State
    notes: tuple[str, ...]


def inner_model(model: nn.Module) -> nn.Module:
    """The classifier inside a PixelModel, or the module itself."""
    return model.backbone if isinstance(model, PixelModel) else model


def bare_names(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[Renamed, State]:
    """`state` without wrappers' prefixes and without PixelModel's, for an inner model with the names of `target`;
    and the file's own mean and std, where it has them. ValueError where two tensors end under one name."""
    found: State = {}
    removed: set[str] = set()
    for name, tensor in state.items():
        bare = name
        while bare not in target and (prefix := _wrapper(bare)):
            bare = bare.replace(prefix, "", 1)
            removed.add(prefix)
        if bare in found:
            raise ValueError(f"holds two tensors for {bare} behind its prefixes; save one model's state dict")
        found[bare] = tensor
    notes = [f"prefix {prefix} removed" for prefix in WRAPPERS if prefix in removed]
    if not any(name.startswith(INNER) for name in found) or any(name.startswith(INNER) for name in target):
        return Renamed(found, tuple(notes)), {}
    pixel = {name: found.pop(name) for name in PIXEL_BUFFERS if name in found and name not in target}
    inner = {name.removeprefix(INNER): tensor for name, tensor in found.items()}
    if len(inner) < len(found):
        raise ValueError(f"holds names with and without {INNER}; save one model's state dict")
    return Renamed(inner, tuple(notes)), pixel


def _wrapper(name: str) -> str | None:
    """The next prefix to take away; torch.compile's may stand inside, where a part of a model was compiled."""
    if "_orig_mod." in name:
        return "_orig_mod."
    return "module." if name.startswith(("module.", f"{INNER}module.")) else None


# ---- norms


class Form(NamedTuple):
    """Groups and copies of a ghost norm's statistics; one group without copies is plain BatchNorm."""

    groups: int
    copies: int | None

    def __str__(self) -> str:
        if self == PLAIN:
            return "plain BatchNorm"
        groups = f"{self.groups} group" + "s" * (self.groups > 1)
        return (
            f"ghost norm of {groups}"
            if self.copies is None
            else f"ghost norm of {groups} in {self.copies} copies"
        )


PLAIN = Form(1, None)


def match_norms(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, average: bool = False
) -> Renamed:
    """Norm statistics in the form that each norm of the model has. To plain BatchNorm those of copy 0 and group 0 go,
    or the average over its groups; to ghost norms they are repeated where the numbers differ. ValueError for
    statistics that do not fit themselves."""
    norms = {name for name in target if name.endswith("running_mean")}
    fits = all(name in state and state[name].shape == target[name].shape for name in norms)
    foreign = any(FOREIGN_NORMS.search(name) for name in state)
    if (fits and not foreign) or any(".auxiliary." in f".{name}" for name in target):
        return Renamed(dict(state), ())
    forms = {name.removesuffix("running_mean"): _form(name, target) for name in norms}
    before = _first_form(state)
    result = {}
    converted = {form: _convert(state, form, average=average) for form in {PLAIN, *forms.values()}}
    for name in converted[PLAIN]:
        result[name] = converted[forms.get(_slot(name), PLAIN)][name]
    changed = {form for form in forms.values() if form != before}
    if not changed:
        return Renamed(result, ())
    taken = "average of the groups" if average else "group 0" + ", copy 0" * (before.copies is not None)
    words = " and ".join(sorted(map(str, changed)))
    return Renamed(result, (f"{before} made {words} ({taken})",))


def _convert(state: Mapping[str, Tensor], form: Form, *, average: bool) -> State:
    if form == PLAIN:
        return plain_batchnorm_state(state, average=average)
    return ghost_state(state, groups=form.groups, copies=form.copies)


def _slot(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _form(name: str, state: Mapping[str, Tensor]) -> Form:
    """Of the norm with the running mean `name` (models.ghost's own form, or the published one)."""
    mean, slot = state[name], name.removesuffix("running_mean")
    weight = state.get(f"{slot}weight", state.get(f"{slot.removesuffix('proxy_bn.')}weight"))
    copies = mean.shape[0] if mean.ndim == 2 else None
    published = re.fullmatch(r"(.*?)bn\d+\.proxy_bn\.", slot)
    if published and f"{published[1]}aff.bnconv.weight" in state:
        weight = state[f"{published[1]}aff.bnconv.weight"]
        start = re.escape(published[1])
        copies = sum(
            re.fullmatch(rf"{start}bn\d+\.proxy_bn\.running_mean", other) is not None for other in state
        )
    channels = mean.shape[-1] if weight is None else weight.shape[0]
    return Form(max(1, mean.shape[-1] // channels), copies)


def _first_form(state: Mapping[str, Tensor]) -> Form:
    names = (name for name in state if name.endswith("running_mean"))
    return next((_form(name, state) for name in names), PLAIN)


# ---- positions


def resample_positions(state: State, inner: nn.Module, target: Mapping[str, Tensor]) -> Renamed:
    """Learned positions of a transformer, from the file's square grid to the model's (another image size)."""
    name = "pos_embed"
    grid = getattr(getattr(inner, "patch_embed", None), "grid_size", None)
    if name not in state or name not in target or grid is None or state[name].ndim != 3:
        return Renamed(state, ())
    given, wanted = state[name].shape, target[name].shape
    prefix = wanted[1] - grid[0] * grid[1]
    side = round(max(0, given[1] - prefix) ** 0.5)
    if (
        given == wanted
        or given[2] != wanted[2]
        or prefix < 0
        or side * side != given[1] - prefix
        or side == 0
    ):
        return Renamed(state, ())
    table = resample_abs_pos_embed(state[name], list(grid), num_prefix_tokens=prefix)
    note = f"pos_embed resampled from {side}x{side} to {grid[0]}x{grid[1]} patches"
    return Renamed({**state, name: table}, (note,))


# ---- older names


def timm_names(state: Mapping[str, Tensor], model: nn.Module) -> Renamed:
    """`state` through timm's own filter for files of other origin (Swin's extra buffers, ConvNeXt's first release),
    where more names and shapes fit afterwards. Shapes may change for tables of relative positions only."""
    filter_fn = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    target = model.state_dict()
    if filter_fn is None or count_problems(state, target) == 0:
        return Renamed(dict(state), ())
    try:
        filtered = dict(filter_fn(dict(state), model))
    except Exception:  # it takes files of certain papers for granted
        return Renamed(dict(state), ())
    for name, tensor in state.items():
        if name in filtered and filtered[name].shape != tensor.shape and "relative_position" not in name:
            filtered[name] = tensor
    if count_problems(filtered, target) >= count_problems(state, target):
        return Renamed(dict(state), ())
    return Renamed(filtered, ("names and tables through timm's filter for this architecture",))


def count_problems(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> int:
    """Names that only one of the two has, and shapes that differ."""
    differ = sum(state[name].shape != target[name].shape for name in state.keys() & target.keys())
    return len(state.keys() ^ target.keys()) + differ
