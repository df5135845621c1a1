"""One call that gives a model another kind of BatchNorm, `set_norm`, and back to the plain one.

It changes every BatchNorm2d (or timm's BatchNormAct2d) in place; weights and biases stay the same Parameter objects,
so an optimizer that holds them goes on working, and evaluation gives the logits that it gave before.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.batchnorm import PrimitiveBatchNorm2d
from models.ghost import GhostBatchNorm2d
from models.ghost_weights import ghost_state, plain_batchnorm_state
from models.split import SplitNorm2d

Make = Callable[..., nn.BatchNorm2d]
Replace = Callable[[nn.Module, str], nn.Module]


def set_norm(model: nn.Module, kind: Literal["plain", "ghost", "split"], **settings: Any) -> nn.Module:
    """Convert every BatchNorm2d under `model`, in place; returns it (or its replacement, if it is one itself).

        ghost  per-group statistics; `groups`, and as wanted `copies`, `grouping`, `evaluation`, `num_devices` of
               models.ghost. Every group of every copy starts from the statistics that are there.
        split  a clean and an adversarial norm, models.split; `shared_affine` (False): one weight and bias for both.
               The adversarial norm starts as a copy. Its two norms are BatchNorm2d, so "ghost", or set_norm_stats,
               can follow.
        plain  nn.BatchNorm2d or BatchNormAct2d again, from any kind of this toolkit: with the statistics that it
               evaluates with; of a split norm, the clean one.

    Synchronised BatchNorm is no kind of its own: set_norm_stats(model, "global"). ValueError for an unknown kind or
    setting, and for a BatchNorm that cannot be converted (1-D, somebody's own class, one converted before).
    """
    if kind == "plain":
        _check_settings(kind, settings, ())
        return replace_norms(model, (PrimitiveBatchNorm2d, SplitNorm2d), _plain)
    if kind == "ghost":
        _check_settings(kind, settings, ("groups", "copies", "grouping", "evaluation", "num_devices"))
        if "groups" not in settings:
            raise ValueError(
                "norm 'ghost' needs groups, the number of groups of a batch; for example groups=4"
            )

        def make(num_features: int, **own: Any) -> nn.BatchNorm2d:
            return GhostBatchNorm2d(num_features, **settings, **own)

        return replace_norms(model, (_BatchNorm,), lambda norm, path: rebuild(norm, make, path=path))
    if kind == "split":
        _check_settings(kind, settings, ("shared_affine",))
        shared = bool(settings.get("shared_affine", False))
        return replace_norms(model, (_BatchNorm,), lambda norm, path: _split(norm, path, shared=shared))
    raise ValueError(f"unknown norm {kind!r}; use 'plain', 'ghost' or 'split'")


def replace_norms(model: nn.Module, kinds: tuple[type[nn.Module], ...], replace: Replace) -> nn.Module:
    """Put `replace(norm, its path)` where a module of one of `kinds` is; one that occurs twice stays one."""
    if isinstance(model, kinds):
        return replace(model, type(model).__name__)
    replaced: dict[nn.Module, nn.Module] = {}
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds):
                if child not in replaced:
                    replaced[child] = replace(child, f"{path}.{name}".lstrip("."))
                setattr(parent, name, replaced[child])
    return model


def rebuild(source: nn.Module, make: Make, *, path: str) -> nn.BatchNorm2d:
    """`make(num_features, **settings)` with the parameters, statistics and mode of `source`, a plain BatchNorm."""
    norm = _convertible(source, path)
    own = {"drop": norm.drop, "act": norm.act} if isinstance(norm, BatchNormAct2d) else {}
    target = make(norm.num_features, **_settings(norm), **own)
    # the same Parameter and buffer objects: an optimizer that already holds them goes on working
    target.weight, target.bias = norm.weight, norm.bias
    buffers = dict(norm.named_buffers(recurse=False))
    if isinstance(target, GhostBatchNorm2d) and norm.track_running_stats:
        buffers = ghost_state(buffers, groups=target.groups, copies=target.copies)
    for name, value in buffers.items():
        setattr(target, name, value)
    return target.train(norm.training)


def _plain(norm: nn.Module, path: str) -> nn.BatchNorm2d:
    if isinstance(norm, SplitNorm2d):
        return _plain(norm.main, f"{path}.main")
    assert isinstance(norm, nn.BatchNorm2d), path
    if not isinstance(norm, PrimitiveBatchNorm2d):
        return norm
    target: nn.BatchNorm2d
    if norm.has_act:
        target = BatchNormAct2d(norm.num_features, **_settings(norm), apply_act=False)
        target.drop, target.act = norm.drop, norm.act
    else:
        target = nn.BatchNorm2d(norm.num_features, **_settings(norm))
    target.weight, target.bias = norm.weight, norm.bias
    buffers = dict(norm.named_buffers(recurse=False))
    if isinstance(norm, GhostBatchNorm2d) and norm.track_running_stats:
        assert norm.running_mean is not None
        # a stand-in, because the sizes of weight and statistics tell how many groups there are
        weight = {"weight": norm.running_mean.new_empty(norm.num_features)}
        buffers = plain_batchnorm_state(weight | buffers, average=norm.evaluation == "average")
        del buffers["weight"]
    for name, value in buffers.items():
        setattr(target, name, value)
    return target.train(norm.training)


def _split(norm: nn.Module, path: str, *, shared: bool) -> SplitNorm2d:
    main = _convertible(norm, path)
    if shared:
        auxiliary = nn.BatchNorm2d(main.num_features, **(_settings(main) | {"affine": False}))
        for name, value in main.named_buffers(recurse=False):
            setattr(auxiliary, name, value.clone())
    else:
        auxiliary = deepcopy(main)
    split = SplitNorm2d(main, auxiliary)
    split.train(main.training)
    return split


def _convertible(norm: nn.Module, path: str) -> nn.BatchNorm2d:
    if type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
        raise ValueError(
            f"norm_stats cannot convert {type(norm).__name__} at {path}; it groups the images of "
            "BatchNorm2d only, in a model not converted before: use 'local' or another model"
        )
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def _settings(norm: nn.BatchNorm2d) -> dict[str, Any]:
    names = ("eps", "momentum", "affine", "track_running_stats")
    return {name: getattr(norm, name) for name in names}


def _check_settings(kind: str, settings: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(
            f"norm {kind!r} has no setting {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
        )
