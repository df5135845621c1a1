"""Which images share BatchNorm's training statistics: `norm_stats: local | global | ghost:K`.

    local     the images of one device
    global    all images of the step, on every device and process
    ghost:K   groups of K images, contiguous in the batch; the only one that is independent of the machine

Robust accuracy depends on this choice, and backends differ in their default (DDP is local, SPMD is global),
so it is said, never inherited. The modules themselves are in models/batchnorm.py. Processes that hold
different images end a step with different running statistics: making buffers equal is the training loop's
business.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.batchnorm import GlobalBatchNorm2d, GroupBatchNorm2d, PrimitiveBatchNorm2d, Reduce

Make = Callable[..., PrimitiveBatchNorm2d]


@dataclass(frozen=True, kw_only=True, slots=True)
class NormStats:
    """A parsed `norm_stats`."""

    kind: Literal["local", "global", "ghost"]
    group_size: int = 0  # K of ghost:K, 0 otherwise


def parse_norm_stats(text: str) -> NormStats:
    """`local`, `global` or `ghost:K` with K >= 1; ValueError otherwise."""
    if text == "local":
        return NormStats(kind="local")
    if text == "global":
        return NormStats(kind="global")
    kind, _, size = text.partition(":")
    if kind == "ghost" and size.isascii() and size.isdigit() and int(size) > 0:
        return NormStats(kind="ghost", group_size=int(size))
    raise ValueError(f"unknown norm_stats {text!r}; use 'local', 'global' or 'ghost:K', K >= 1 ('ghost:64')")


def check_ghost(norm_stats: str, batch_per_process: int, *, num_devices: int = 1) -> None:
    """ValueError when `batch_per_process` images do not split into the groups that `norm_stats` asks for.

    `batch_per_process` counts the images of one forward: a micro-batch where gradients are accumulated.
    """
    parsed = parse_norm_stats(norm_stats)
    unit = {"local": num_devices, "global": 1, "ghost": parsed.group_size}[parsed.kind]
    if batch_per_process % unit or batch_per_process < unit:
        lower = batch_per_process // unit * unit
        near = f"{lower} or {lower + unit}" if lower else f"{unit}"
        shared = f"{num_devices} devices" if parsed.kind == "local" else f"groups of {unit}"
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
    if isinstance(module, _BatchNorm):
        return _rebuild(module, make, path=type(module).__name__)
    replaced: dict[_BatchNorm, nn.Module] = {}  # a module that occurs twice stays one module
    for path, parent in list(module.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                if child not in replaced:
                    replaced[child] = _rebuild(child, make, path=f"{path}.{name}".lstrip("."))
                setattr(parent, name, replaced[child])
    return module


def _maker(stats: NormStats, *, num_devices: int, reduce: Reduce | None, world_size: int) -> Make | None:
    """What builds the replacement from BatchNorm's own settings; None where plain BatchNorm is right."""

    def ghost(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        return GroupBatchNorm2d(num_features, group_size=stats.group_size, **settings)

    def one_group_per_device(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        return GroupBatchNorm2d(num_features, num_groups=num_devices, **settings)

    def all_processes(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
        assert reduce is not None
        return GlobalBatchNorm2d(num_features, reduce=reduce, world_size=world_size, **settings)

    if stats.kind == "ghost":
        return ghost
    if stats.kind == "local" and num_devices > 1:
        return one_group_per_device
    if stats.kind == "global" and reduce is not None and world_size > 1:
        return all_processes
    return None


def _one_group(num_features: int, **settings: Any) -> PrimitiveBatchNorm2d:
    return GroupBatchNorm2d(num_features, num_groups=1, **settings)


def _rebuild(source: _BatchNorm, make: Make, *, path: str) -> nn.Module:
    if type(source) not in (nn.BatchNorm2d, BatchNormAct2d):
        raise ValueError(
            f"norm_stats cannot convert {type(source).__name__} at {path}; it groups the images of "
            "BatchNorm2d only, in a model not converted before: use 'local' or another model"
        )
    settings: dict[str, Any] = {}
    if isinstance(source, BatchNormAct2d):
        settings = {"drop": source.drop, "act": source.act}
    target = make(
        source.num_features,
        eps=source.eps,
        momentum=source.momentum,
        affine=source.affine,
        track_running_stats=source.track_running_stats,
        **settings,
    )
    # the same Parameter and buffer objects: an optimizer that already holds them goes on working
    target.weight, target.bias = source.weight, source.bias
    target.running_mean, target.running_var = source.running_mean, source.running_var
    target.num_batches_tracked = source.num_batches_tracked
    return target.train(source.training)
