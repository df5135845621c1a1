"""Which images share BatchNorm's training statistics: `norm_stats: local | global | ghost:K | groups:R...`.

    local     the images of one device
    global    all images of the step, on every device and process: synchronised BatchNorm (SyncBN)
    ghost:K   groups of K images, contiguous in the batch; the only one that is independent of the machine
    groups:R  R groups of the images of one device, each with running statistics of its own (models/ghost.py);
              `groups:RxF` has F copies of them, one for each micro-batch of an update in turn; `:modulo` puts
              image i into group i mod R, not in contiguous groups; `:average` evaluates with the average over the
              groups, not with the first. Bai et al. 2021 trained ResNet-50 with GELU by groups:2x8:modulo

Robust accuracy depends on this choice, and backends differ in their default (DDP is local, SPMD is global),
so it is said, never inherited. The modules themselves are in models/batchnorm.py. Processes that hold
different images end a step with different running statistics: making buffers equal is the training loop's
business. models/convert.py converts to and from all of these without a recipe.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.batchnorm import GlobalBatchNorm2d, GroupBatchNorm2d, PrimitiveBatchNorm2d, Reduce
from models.convert import Make, rebuild, replace_norms
from models.ghost import Evaluation, GhostBatchNorm2d, Grouping

GROUPS = re.compile(r"groups:([1-9][0-9]*)(?:x([1-9][0-9]*))?(:modulo)?(:average)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class NormStats:
    """A parsed `norm_stats`."""

    kind: Literal["local", "global", "ghost", "groups"]
    group_size: int = 0  # K of ghost:K, 0 otherwise
    groups: int = 0  # R of groups:R, 0 otherwise; the rest is of groups:R too
    copies: int | None = None
    grouping: Grouping = "contiguous"
    evaluation: Evaluation = "first"


def parse_norm_stats(text: str) -> NormStats:
    """`local`, `global`, `ghost:K` or `groups:R[xF][:modulo][:average]`, numbers >= 1; ValueError otherwise."""
    if text == "local":
        return NormStats(kind="local")
    if text == "global":
        return NormStats(kind="global")
    kind, _, size = text.partition(":")
    if kind == "ghost" and size.isascii() and size.isdigit() and int(size) > 0:
        return NormStats(kind="ghost", group_size=int(size))
    if found := GROUPS.fullmatch(text):
        return NormStats(
            kind="groups",
            groups=int(found[1]),
            copies=int(found[2]) if found[2] else None,
            grouping="modulo" if found[3] else "contiguous",
            evaluation="average" if found[4] else "first",
        )
    raise ValueError(
        f"unknown norm_stats {text!r}; use 'local', 'global' or 'ghost:K', K >= 1 ('ghost:64'), or "
        "'groups:R', 'groups:RxF' for statistics of R groups in F copies ('groups:4x4')"
    )


def check_ghost(norm_stats: str, batch_per_process: int, *, num_devices: int = 1) -> None:
    """ValueError when `batch_per_process` images do not split into the groups that `norm_stats` asks for.

    `batch_per_process` counts the images of one forward: a micro-batch where gradients are accumulated.
    """
    parsed = parse_norm_stats(norm_stats)
    units = {
        "local": num_devices,
        "global": 1,
        "ghost": parsed.group_size,
        "groups": parsed.groups * num_devices,
    }
    unit = units[parsed.kind]
    if batch_per_process % unit or batch_per_process < unit:
        lower = batch_per_process // unit * unit
        near = f"{lower} or {lower + unit}" if lower else f"{unit}"
        words = {"local": f"{num_devices} devices", "groups": f"{unit} groups"}
        shared = words.get(parsed.kind, f"groups of {unit}")
        raise ValueError(
            f"norm_stats {norm_stats!r}: {batch_per_process} images per process do not split into {shared}; "
            f"try a batch of {near}"
        )


def set_norm_stats(
    module: nn.Module,
    norm_stats: str,
    *,
    num_devices: int = 1,
    reduce: Reduce | None = None,
    world_size: int = 1,
    native: bool = True,
) -> nn.Module:
    """Convert every BatchNorm2d under `module`, in place, parameters and buffers shared; returns the module.

    `num_devices`: devices that share the batch tensor which the module sees (SPMD), 1 otherwise. `reduce`
    with `world_size` is needed for `global` over several processes; without them the batch tensor is taken to
    be the whole batch. A model without BatchNorm is left alone. Where plain BatchNorm already does what is
    asked, it stays, unless `native` says that the backend's own does not keep torch's running statistics
    (torch_xla 2.9 stores the biased variance): then it becomes one group in primitive ops.

    Raises ValueError for an unknown `norm_stats`, and for a kind of BatchNorm that cannot be grouped by
    images.
    """
    make = _maker(parse_norm_stats(norm_stats), num_devices=num_devices, reduce=reduce, world_size=world_size)
    if make is None and not native:
        make = _one_group
    if make is None:
        return module
    chosen: Make = make  # a name of its own, because a closure forgets that it is not None
    return replace_norms(module, (_BatchNorm,), lambda norm, path: rebuild(norm, chosen, path=path))


def _maker(stats: NormStats, *, num_devices: int, reduce: Reduce | None, world_size: int) -> Make | None:
    """What builds the replacement from BatchNorm's own settings; None where plain BatchNorm is right."""

    def ghost(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        return GroupBatchNorm2d(num_features, group_size=stats.group_size, **settings)

    def one_group_per_device(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        return GroupBatchNorm2d(num_features, num_groups=num_devices, **settings)

    def all_processes(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        assert reduce is not None
        return GlobalBatchNorm2d(num_features, reduce=reduce, world_size=world_size, **settings)

    def per_group(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        return GhostBatchNorm2d(
            num_features,
            groups=stats.groups,
            copies=stats.copies,
            grouping=stats.grouping,
            evaluation=stats.evaluation,
            num_devices=num_devices,
            **settings,
        )

    if stats.kind == "ghost":
        return ghost
    if stats.kind == "groups":
        return per_group
    if stats.kind == "local" and num_devices > 1:
        return one_group_per_device
    if stats.kind == "global" and reduce is not None and world_size > 1:
        return all_processes
    return None


def _one_group(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
    return GroupBatchNorm2d(num_features, num_groups=1, **settings)
