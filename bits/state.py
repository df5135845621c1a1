"""Everything that a run must remember to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bits.ema import Ema

# Positions are plain ints; random streams need no state, because every draw is a function of
# (seed, purpose, epoch, position) and dropout is seeded per step.


@dataclass(slots=True)
class TrainState:
    """Model, optimizer and average, with the place in the data: `consumed` samples of epoch `epoch`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    step: int = 0
    epoch: int = 0
    consumed: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the cpu and plain numbers only, so that it loads with weights_only=True on any backend."""
        state: dict[str, Any] = {
            "model": to_cpu(self.model.state_dict()),
            "optimizer": to_cpu(self.optimizer.state_dict()),
            "step": self.step,
            "epoch": self.epoch,
            "consumed": self.consumed,
        }
        if self.ema is not None:
            state["ema"] = to_cpu(self.ema.module.state_dict())
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores in place; tensors go to where the live ones are. KeyError cannot happen for our own files."""
        self.model.load_state_dict(state["model"])
        self._load_optimizer(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.step, self.epoch, self.consumed = state["step"], state["epoch"], state["consumed"]

    def _load_optimizer(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(dict(state))
        # torch leaves scalar tensors such as `step` and a tensor lr on the cpu: a device mismatch on cuda, a
        # transfer each step on XLA.
        device = next(self.model.parameters()).device
        for group in self.optimizer.param_groups:
            for name, value in group.items():
                if isinstance(value, Tensor):
                    group[name] = value.to(device)
        for entry in self.optimizer.state.values():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    entry[name] = value.to(device)


def to_cpu(value: Any) -> Any:
    """A copy of nested dicts and lists with every tensor detached and copied to the cpu."""
    if isinstance(value, Tensor):
        # clone: on the cpu `.cpu()` is the live tensor, which the next step changes.
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(entry) for entry in value)
    return value
