"""What a train step minimises: from mixed images and their targets to a loss for each sample.

An objective makes the forward passes and, where it has one, the attack; the step (engine/step.py) prepares the
images before it and does backward and update behind it. A new way to train is a class here, or in a file of its
own, and a line in `make_objective`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from bits.environment import Environment
from data.batch import Batch
from engine.fields import AttackSection
from engine.knobs import Knobs
from engine.training_attack import TrainingAttack


class Inputs(NamedTuple):
    """A batch on the device, augmented and mixed."""

    image: Tensor  # float32 (N,3,H,W) in [0,1]
    target: Tensor  # float32 (N,K), smoothed and mixed
    batch: Batch  # as it was fed: label, seed, draw, mask
    knobs: Knobs


class Losses(NamedTuple):
    """What an objective found."""

    loss: Tensor  # (N,), to be averaged and minimised
    logits: Tensor  # (N,K) of the images that the weights are updated on: top-1 is counted on them
    attacked: Tensor | None = None  # (N,3,H,W), to be looked at
    values: Mapping[str, Tensor] = MappingProxyType({})  # (N,) for each of `Objective.meters`


class Objective(Protocol):
    """Static shapes, no host read, the same graph in every step."""

    @property
    def meters(self) -> tuple[str, ...]:
        """Names of what it measures beside loss and top1."""

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        """`forward` is the wrapped model (DDP); the objective runs it under the environment's autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """What an objective needs of a recipe."""

    mixing: bool
    attack: AttackSection | None


def make_objective(settings: ObjectiveSettings, env: Environment, model: nn.Module) -> Objective:
    """The objective of a recipe; `model` is the unwrapped one."""
    if settings.attack is None:
        return Clean(env=env)
    attack = TrainingAttack(env=env, model=model, settings=settings.attack)
    return Adversarial(env=env, attack=attack, mixing=settings.mixing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """Cross-entropy with the soft target."""

    env: Environment
    meters: tuple[str, ...] = ()

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        with self.env.autocast():
            logits = forward(inputs.image)
        return Losses(loss=soft_cross_entropy(logits, inputs.target), logits=logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adversarial:
    """Cross-entropy on attacked images alone (Madry et al. 2018, arXiv:1706.06083)."""

    env: Environment
    attack: TrainingAttack
    mixing: bool
    meters: tuple[str, ...] = ()

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        # Hard labels unless mixing is on, without smoothing (Bai et al. 2021, code).
        goal = inputs.target if self.mixing else inputs.batch.label
        attacked = self.attack(inputs.image, goal, inputs.batch, inputs.knobs)
        with self.env.autocast():
            logits = forward(attacked)
        return Losses(loss=soft_cross_entropy(logits, inputs.target), logits=logits, attacked=attacked)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_c target log softmax(logits), float32, per sample: (N,K) and (N,K) -> (N,)."""
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
