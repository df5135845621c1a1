"""Stand-ins for a step's objective, forward and environment, through which a watch sees them."""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bits.environment import Clip, Environment
from engine.objective import Inputs, Losses, Objective
from engine.parity.watch import Watch


class WatchedObjective:
    """An objective that a watch looks at."""

    meters: ClassVar[tuple[str, ...]] = ()  # the step takes them from its settings

    def __init__(self, inner: Objective, watch: Watch, env: Environment) -> None:
        self.inner, self.watch, self.env = inner, watch, env

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        if not self.watch._updates:  # a replay has the same ones
            self.watch.micro += 1
            self.watch._passes = self.watch.attack_steps = 0
            self.watch.inputs(self.env, inputs)
        losses = self.inner(forward, inputs)
        self.watch.losses(losses)
        return losses


class WatchedForward(nn.Module):
    """A wrapped model that a watch looks at."""

    def __init__(self, inner: nn.Module, watch: Watch) -> None:
        super().__init__()
        self.inner, self._watch = inner, watch

    def forward(self, image: Tensor) -> Any:
        return self._watch.forward(self.inner, image)


class WatchedEnvironment:
    """An environment whose update a watch looks at; all else is the environment's own."""

    def __init__(self, inner: Environment, watch: Watch) -> None:
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def apply(self, optimizer: torch.optim.Optimizer, module: nn.Module, *, clip: Clip | None) -> None:
        self._watch.gradients_(module)

        def clip_and_look(module: nn.Module) -> None:
            if clip is not None:
                clip(module)
            self._watch.clipped(module)

        self._inner.apply(optimizer, module, clip=clip_and_look)


def watched(env: Environment, watch: Watch) -> Environment:
    """`env`, looked at."""
    return cast(Environment, WatchedEnvironment(env, watch))
