"""What a train step minimises: from mixed images and their targets to a loss for each sample.

An objective makes the forward passes and, where it has one, the attack; the step (engine/step.py) prepares the
images before it and does backward and update behind it. A new way to train is a class here, or in a file of its
own such as engine/adversarial_objectives.py, and a line in `objective_class`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from bits.environment import Environment
from data.batch import Batch
from engine.fields import AttackSection, LossName, ObjectiveKind
from engine.knobs import Knobs
from engine.weight_fields import DistillSection


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

    meters: ClassVar[tuple[str, ...]]  # what it measures beside loss and top1

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        """`forward` is the wrapped model (DDP); the objective runs it under the environment's autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """What an objective needs of a recipe."""

    num_classes: int
    mixing: bool
    kind: ObjectiveKind = "clean"
    attack: AttackSection | None = None
    loss: LossName = "ce"
    clean_weight: float = 0.0  # adversarial: share of the loss on clean images
    beta: float = 6.0  # trades, mart: weight of the divergence
    distill: DistillSection | None = None


class ObjectiveClass(Protocol):
    """What makes an objective and knows its meters before it is made."""

    @property
    def meters(self) -> tuple[str, ...]: ...

    def __call__(self, *, env: Environment, model: nn.Module, settings: ObjectiveSettings) -> Objective: ...


def objective_class(settings: ObjectiveSettings) -> ObjectiveClass:
    """The class that stands for `settings.kind`. Of `free` the loss alone: its attack is the step (engine/free.py)."""
    # Here, because that file imports this one.
    from engine.adversarial_objectives import Adversarial, AdvProp, Mart, Trades, WithClean

    if settings.kind in ("clean", "free"):
        return Clean
    if settings.kind == "adversarial":
        return WithClean if settings.clean_weight > 0 else Adversarial
    others: dict[str, ObjectiveClass] = {"trades": Trades, "mart": Mart, "advprop": AdvProp}
    return others[settings.kind]


def objective_meters(settings: ObjectiveSettings) -> tuple[str, ...]:
    """What the objective of a recipe measures beside loss and top1."""
    from engine.distillation import Distilled

    return objective_class(settings).meters + (() if settings.distill is None else Distilled.meters)


def make_objective(
    settings: ObjectiveSettings,
    env: Environment,
    model: nn.Module,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Objective:
    """The objective of a recipe; `model` is the unwrapped one, `teacher` gives logits of images."""
    from engine.distillation import Distilled

    objective = objective_class(settings)(env=env, model=model, settings=settings)
    assert (teacher is None) == (settings.distill is None), "a teacher and distillation need each other"
    if teacher is None or settings.distill is None:
        return objective
    return Distilled(inner=objective, teacher=teacher, model=model, settings=settings.distill)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """Cross-entropy with the soft target (or `binary_cross_entropy`)."""

    meters: ClassVar[tuple[str, ...]] = ()

    env: Environment
    model: nn.Module
    settings: ObjectiveSettings

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        with self.env.autocast():
            logits = forward(inputs.image)
        return Losses(loss=classification_loss(self.settings.loss, logits, inputs.target), logits=logits)


def classification_loss(name: LossName, logits: Tensor, target: Tensor) -> Tensor:
    """The loss called `name`, float32, per sample: (N,K) and (N,K) -> (N,)."""
    return soft_cross_entropy(logits, target) if name == "ce" else binary_cross_entropy(logits, target)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_c target log softmax(logits), float32, per sample: (N,K) and (N,K) -> (N,)."""
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Every class a yes-or-no question, the mean over the classes: timm's BinaryCrossEntropy (Wightman et al. 2021,
    arXiv:2110.00476) without its threshold. float32, (N,K) and (N,K) -> (N,)."""
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)


def is_right(logits: Tensor, label: Tensor) -> Tensor:
    """1 where the first choice is the label, else 0: float32 (N,)."""
    return (logits.detach().argmax(dim=1) == label).float()
