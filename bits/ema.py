"""Exponential moving average of a model's weights and buffers, kept on the device."""

import copy

import torch
from torch import Tensor, nn


class Ema:
    """`shadow <- shadow + (1 - decay) * (model - shadow)` once an update; integer buffers are copied.

    The shadow is float32 whatever autocast does, and is updated with in-place arithmetic between tensors, so
    no backend can fold it into the live weights. Not decay * shadow + (1 - decay) * model: float32 has 0.9999 to
    3e-8 only, and weights that stand still would be multiplied by 1.0003 or so.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"optim.ema {decay} must lie between 0 and 1, e.g. 0.9999")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update_(self, model: nn.Module, weight: Tensor | None = None) -> None:
        """`weight` (0-dim, on the device) instead of 1 - decay: a tensor, so that it may change without a new graph."""
        live = model.state_dict()
        for name, shadow in self.module.state_dict().items():
            if shadow.is_floating_point():
                shadow.lerp_(live[name], 1.0 - self.decay if weight is None else weight)
            else:
                shadow.copy_(live[name])
