"""Ghost-norm statistics in state dicts: to plain BatchNorm and back, over every form in which files hold them.

    plain       X.weight, X.bias, X.running_mean, X.running_var (C), X.num_batches_tracked
    ghost       as plain with running_* (r*C), group after group; with copies (F, r*C): models.ghost's own form
    published   X.weight, X.bias, X.proxy_bn.running_mean, .running_var (r*C), .num_batches_tracked
    published   X.bn{0..F-1}.proxy_bn.running_mean, ..., X.aff.bnconv.weight (C,1,1,1), X.aff.bnconv.bias
    split       X.main.* (as plain or ghost) and X.auxiliary.*: models.split's own form

The published forms are those of Bai et al. 2021 (arXiv:2111.05464). Pure functions: nothing is changed in place,
but tensors that need no change are the given ones. Keys may have any prefix. States are small, so clarity wins.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

AFFINE = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Norm:
    """One norm of a state dict."""

    affine: dict[str, Tensor]  # weight and bias (C), or nothing
    mean: Tensor  # (F, r, C); F = 1 without copies
    var: Tensor
    count: Tensor | None  # train-mode forwards, over all copies
    has_copies: bool


def plain_batchnorm_state(state: Mapping[str, Tensor], *, average: bool = False) -> dict[str, Tensor]:
    """The state as plain BatchNorm's: statistics of copy 0 and of group 0, or their average over its groups.

    That is what the ghost norms evaluate with. Of a split norm, the main branch stays. A state without any of
    these forms comes back as it is. ValueError, naming the key, when sizes do not fit each other.
    """
    state = _main_branch(state)
    return _rewrite(state, lambda _, norm: _plain(norm, average=average), only_ghost=True)


def ghost_state(state: Mapping[str, Tensor], *, groups: int, copies: int | None = None) -> dict[str, Tensor]:
    """The state in models.ghost's own form, for `groups` groups (r) and, if given, `copies` copies (F).

    Statistics of r groups in F copies are kept, whatever form they come in; anything else goes through plain
    BatchNorm (copy 0, group 0) and is repeated. ValueError for numbers below 1.
    """
    if groups < 1 or (copies is not None and copies < 1):
        raise ValueError(f"groups {groups} and copies {copies} must be 1 or more; leave copies out for none")

    def own(_: str, norm: _Norm) -> dict[str, Tensor]:
        wanted = (copies or 1, groups)
        if norm.mean.shape[:2] != wanted or norm.has_copies != (copies is not None):
            mean, var = (t[:1, :1].expand(*wanted, -1) for t in (norm.mean, norm.var))
            # the same number for every copy, so that training goes on with copy 0
            count = None if norm.count is None else _count_of_copy(norm, 0) * (copies or 1)
            norm = _Norm(affine=norm.affine, mean=mean, var=var, count=count, has_copies=copies is not None)
        shape = (-1,) if copies is None else (copies, -1)
        running = {"running_mean": norm.mean.reshape(shape), "running_var": norm.var.reshape(shape)}
        return {**norm.affine, **running, **_counted(norm.count)}

    return _rewrite(_main_branch(state), own, only_ghost=False)


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """models.ghost's own form -> the published names, for readers of those files; plain norms stay as they are."""

    def published(name: str, norm: _Norm) -> dict[str, Tensor]:
        if not norm.has_copies:
            return norm.affine | _proxy("proxy_bn", norm, 0)
        if not norm.affine:
            raise ValueError(f"{name} has copies and no weight; the published form needs a weight and a bias")
        found: dict[str, Tensor] = {}
        for index in range(norm.mean.shape[0]):
            found |= _proxy(f"bn{index}.proxy_bn", norm, index)
        found["aff.bnconv.weight"] = norm.affine["weight"].view(-1, 1, 1, 1)
        return found | {"aff.bnconv.bias": norm.affine["bias"]}

    return _rewrite(state, published, only_ghost=True)


def _proxy(name: str, norm: _Norm, copy: int) -> dict[str, Tensor]:
    # clones: views of one storage are no good for safetensors
    running = {
        "running_mean": norm.mean[copy].flatten().clone(),
        "running_var": norm.var[copy].flatten().clone(),
    }
    count = None if norm.count is None else _count_of_copy(norm, copy)
    return {f"{name}.{key}": value for key, value in (running | _counted(count)).items()}


def _plain(norm: _Norm, *, average: bool) -> dict[str, Tensor]:
    mean, var = (t[0].mean(0) if average else t[0, 0].clone() for t in (norm.mean, norm.var))
    count = None if norm.count is None else _count_of_copy(norm, 0)
    return {**norm.affine, "running_mean": mean, "running_var": var, **_counted(count)}


def _count_of_copy(norm: _Norm, copy: int) -> Tensor:
    """Copies take turns: of `count` forwards, copy i had those with number i modulo F."""
    assert norm.count is not None
    copies = norm.mean.shape[0]
    return torch.div(norm.count + (copies - 1 - copy), copies, rounding_mode="floor")


def _counted(count: Tensor | None) -> dict[str, Tensor]:
    return {} if count is None else {"num_batches_tracked": count}


def _rewrite(
    state: Mapping[str, Tensor], make: Callable[[str, _Norm], dict[str, Tensor]], *, only_ghost: bool
) -> dict[str, Tensor]:
    """`state` with every norm's entries replaced, in their place, by what `make(slot, norm)` gives."""
    owner: dict[str, str] = {}  # key -> slot
    found: dict[str, dict[str, Tensor]] = {}
    for slot, prefixes in _slots(state).items():
        keys = _keys(state, slot, prefixes)
        norm = _read(state, slot, keys)
        is_plain = not norm.has_copies and norm.mean.shape[1] == 1 and prefixes == [slot]
        if not (only_ghost and is_plain):
            owner |= {key: slot for each in keys.values() for key in each}
            found[slot] = {slot + name: value for name, value in make(slot, norm).items()}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        result |= found.pop(owner[key], {}) if key in owner else {key: value}
    return result


def _slots(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Prefix of each norm ("layer1.0.bn1.") -> prefixes of its statistics, one for each published copy."""
    found: dict[str, list[str]] = {}
    for key in state:
        if not key.endswith("running_mean"):
            continue
        prefix = key.removesuffix("running_mean")
        copy = re.fullmatch(r"(.*?)bn\d+\.proxy_bn\.", prefix)
        # ResNet's own bn1.proxy_bn is no copy: copies have an affine beside them
        if copy and f"{copy[1]}aff.bnconv.weight" in state:
            found.setdefault(copy[1], []).append(prefix)
        else:
            found[prefix.removesuffix("proxy_bn.")] = [prefix]
    return found


def _keys(state: Mapping[str, Tensor], slot: str, prefixes: list[str]) -> dict[str, list[str]]:
    """weight, bias, running_mean, ... of the norm at `slot` -> its keys in `state`, several for several copies."""
    if f"{slot}aff.bnconv.weight" in state:
        prefixes = [f"{slot}bn{index}.proxy_bn." for index in range(len(prefixes))]
        keys = {name: [f"{slot}aff.bnconv.{name}"] for name in AFFINE}
    else:  # of the published form, only the weight tells how many channels there are
        is_needed = prefixes != [slot]
        keys = {name: [f"{slot}{name}"] for name in AFFINE if is_needed or f"{slot}{name}" in state}
    keys |= {name: [f"{prefix}{name}" for prefix in prefixes] for name in STATISTICS}
    if keys["num_batches_tracked"][0] not in state:
        del keys["num_batches_tracked"]
    if missing := [key for each in keys.values() for key in each if key not in state]:
        raise ValueError(f"{_where(slot)} lacks {missing[0]}; is the file complete?")
    return keys


def _read(state: Mapping[str, Tensor], slot: str, keys: dict[str, list[str]]) -> _Norm:
    found = {name: [state[key] for key in each] for name, each in keys.items()}
    running = found["running_mean"] + found["running_var"]
    channels = found["weight"][0].numel() if "weight" in found else running[0].shape[-1]
    sizes = sorted({t.shape[-1] if t.ndim else 0 for t in running})
    if len(sizes) > 1 or not channels or sizes[0] % channels or len({t.shape for t in running}) > 1:
        raise ValueError(
            f"{_where(slot)} has statistics of {sizes} values for {channels} channels; "
            "it must be one size, and a multiple of the channels"
        )
    groups = sizes[0] // channels
    mean, var = (torch.stack(found[name]).reshape(-1, groups, channels) for name in STATISTICS[:2])
    return _Norm(
        affine={name: found[name][0].reshape(-1) for name in AFFINE if name in found},
        mean=mean,
        var=var,
        count=torch.stack(found["num_batches_tracked"]).sum(0) if "num_batches_tracked" in found else None,
        has_copies=len(keys["running_mean"]) > 1
        or running[0].ndim == 2
        or f"{slot}aff.bnconv.weight" in state,
    )


def _where(slot: str) -> str:
    return f"ghost norm at {slot.rstrip('.') or 'the top'}"


def _main_branch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the auxiliary norms of models.split, their main norms in their place."""
    end = "auxiliary.running_mean"
    slots = [key.removesuffix(end) for key in state if key.endswith(end)]
    slots = [slot for slot in slots if f"{slot}main.running_mean" in state]
    main, auxiliary = {f"{slot}main" for slot in slots}, {f"{slot}auxiliary" for slot in slots}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        if prefix in main:
            found[prefix.removesuffix("main") + name] = value
        elif prefix not in auxiliary:
            found[key] = value
    return found
