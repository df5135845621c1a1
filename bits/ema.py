"""Exponential moving average of a model's weights and buffers, kept on the device."""

import copy

import torch
from torch import nn


class Ema:
    """`shadow <- decay * shadow + (1 - decay) * model` once an update; integer buffers are copied.

    The shadow is float32 whatever autocast does, and is updated with in-place arithmetic between tensors, so
    no backend can fold it into the live weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"optim.ema {decay} must lie between 0 and 1, e.g. 0.9999")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update_(self, model: nn.Module) -> None:
        live = model.state_dict()
        for name, shadow in self.module.state_dict().items():
            if shadow.is_floating_point():
                shadow.mul_(self.decay).add_(live[name], alpha=1.0 - self.decay)
            else:
                shadow.copy_(live[name])
