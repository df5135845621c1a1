"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174) in which running statistics see each batch once.

The backward pass runs a checkpointed module a second time. With plain checkpointing a BatchNorm then moves its
running statistics twice a step, so that the saved model differs from one trained without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timm.models import checkpoint as timm_checkpoint
from torch import Tensor, nn

Checkpoint = Callable[..., Any]
"""`checkpoint(function, *tensors)`, as torch.utils.checkpoint's. torch_xla has its own; torch's raises there."""


def recompute(module: nn.Module, x: Tensor, checkpoint: Checkpoint = timm_checkpoint) -> Tensor:
    """`module(x)`, whose inner tensors are computed again in the backward pass instead of being kept."""
    out: Tensor = checkpoint(_Runs(module), x)
    return out


class _Runs:
    """Calls the module; from the second call on its buffers come out as they went in."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.has_run = False

    def __call__(self, x: Tensor) -> Tensor:
        if not self.has_run:
            self.has_run = True
            first: Tensor = self.module(x)
            return first
        with _spare_buffers(self.module):
            again: Tensor = self.module(x)
            return again


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
