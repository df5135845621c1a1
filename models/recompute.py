"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) whose second run sees what the first one saw.

The backward pass runs a block again instead of keeping its inner tensors: one more forward pass for the memory of
one block. Plain checkpointing goes wrong in two ways that no error tells of. A BatchNorm moves its running
statistics twice a step. And what a training step has switched meanwhile (train and eval mode, the branch of a split
norm, statistics frozen for an attack) holds in the second run, which then is that of another function.

Which blocks: those that timm's `group_matcher` names, so every model with an order of layers has them. How a block
is run again is the backend's affair (`Environment.recompute`) and is passed in.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.pixel import PixelModel

Checkpoint = Callable[..., Any]
"""`checkpoint(module, *tensors)` -> module(*tensors), as torch.utils.checkpoint's. Torch's raises on XLA."""

Plain = bool | int | float | str | None


def recompute_blocks(model: nn.Module, checkpoint: Checkpoint | None) -> int:
    """Let every block of `model` run again in the backward pass, by `checkpoint`; None undoes it. How many they are.

    In place and before DDP wraps the model: a block becomes an instance of a subclass of its class, so names,
    isinstance and deepcopy stay as they were. ValueError for a model that does not say what its blocks are.
    """
    found = blocks(model)
    made: dict[type[nn.Module], type[nn.Module]] = {}
    for block in found:
        kind = type(block)
        plain = kind.__mro__[2] if issubclass(kind, _Recomputed) else kind
        if checkpoint is not None and plain not in made:
            made[plain] = _recomputed(plain, checkpoint)
        block.__class__ = made.get(plain, plain)
    return len(found)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What timm's `group_matcher` calls blocks, those of one layer left out: recomputing one layer saves nothing."""
    inner = model.backbone if isinstance(model, PixelModel) else model
    name = model.name if isinstance(model, PixelModel) else type(inner).__name__
    matcher = getattr(inner, "group_matcher", None)
    if not callable(matcher):
        raise ValueError(
            f"model {name!r} does not say which parts are its blocks (it has no group_matcher); set model.recompute "
            "to false"
        )
    named = matcher(coarse=False).get("blocks", ())
    patterns = (
        [named] if isinstance(named, str) else [each if isinstance(each, str) else each[0] for each in named]
    )
    found = [
        module
        for path, module in inner.named_modules()
        if any(re.fullmatch(pattern.rstrip("$"), path) for pattern in patterns)
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
    ]
    if not found:
        raise ValueError(f"model {name!r} has no blocks that could run again; set model.recompute to false")
    return found


class _Recomputed:
    """Marks the classes that `_recomputed` makes."""


def _recomputed(kind: type[nn.Module], checkpoint: Checkpoint) -> type[nn.Module]:
    def forward(self: nn.Module, *inputs: Tensor, **settings: Any) -> Tensor:
        def plain(*again: Tensor) -> Tensor:
            out: Tensor = kind.forward(self, *again, **settings)
            return out

        if not torch.is_grad_enabled():
            return plain(*inputs)
        if not all(isinstance(each, Tensor) for each in inputs):
            raise ValueError(
                f"a {kind.__name__} takes more than tensors and cannot run again; set model.recompute to false"
            )
        out: Tensor = checkpoint(_Again(self, plain), *inputs)
        return out

    return type(f"Recomputed{kind.__name__}", (_Recomputed, kind), {"forward": forward})


class _Again(nn.Module):
    """Calls `function`, a forward of `module`; from the second call on the module is as it was at the first, and its
    buffers come out as they went in. A module itself, so that a backend can ask for the parameters."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function
        self.before: list[tuple[nn.Module, dict[str, Plain]]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        if not self.before:
            self.before = [(part, _plain_attributes(part)) for part in self.module.modules()]
            return self.function(*inputs)
        with _as_before(self.before), _spare_buffers(self.module):
            return self.function(*inputs)


def _plain_attributes(module: nn.Module) -> dict[str, Plain]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Plain)}


@contextmanager
def _as_before(before: list[tuple[nn.Module, dict[str, Plain]]]) -> Iterator[None]:
    now = [(part, _plain_attributes(part)) for part, _ in before]
    for part, attributes in before:
        vars(part).update(attributes)
    try:
        yield
    finally:
        for part, attributes in now:
            vars(part).update(attributes)


@contextmanager
def _spare_buffers(module: nn.Module) -> Iterator[None]:
    # copies rather than a switch such as track_running_stats: autograd must see the same calls as the first time
    held = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    for owner, name, buffer in held:
        owner._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for owner, name, buffer in held:
            owner._buffers[name] = buffer
