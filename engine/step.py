"""The train step: augment, mix, objective, backward, update. Static shapes, no host read, a fixed set of graphs."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState
from data.augment import NO_AUGMENT, DeviceAugment
from data.batch import Batch
from data.mix import mix, smooth_one_hot
from engine.build import build_augment, mix_settings
from engine.fields import AttackSection
from engine.knobs import Knobs
from engine.objective import Inputs, Losses, Objective, ObjectiveSettings, make_objective
from engine.optim import TensorLrOptimizer
from engine.recipe import Recipe

METERS = ("loss", "top1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What the step needs of a recipe: all of it constant over a run, so that graphs are too."""

    num_classes: int
    smoothing: float
    mixing: bool
    attack: AttackSection | None
    clip_norm: float | None
    accumulate: int
    preview: int = 0  # images of each batch that stay to be looked at
    augment: DeviceAugment = NO_AUGMENT


def step_settings(recipe: Recipe, num_classes: int) -> StepSettings:
    """The step's constants. Mixing is on when any epoch mixes, so that a warm-up from 0 adds no graph."""
    objective = recipe.objective
    return StepSettings(
        num_classes=num_classes,
        smoothing=objective.smoothing,
        mixing=any(mix_settings(recipe, epoch).is_on for epoch in range(recipe.run.epochs)),
        attack=objective.attack if objective.kind == "adversarial" else None,
        clip_norm=recipe.optim.clip_norm,
        accumulate=recipe.optim.accumulate,
        preview=recipe.run.preview_images,
        augment=build_augment(recipe),
    )


@dataclass(slots=True)
class TrainStep:
    """Calls on consecutive batches; every `accumulate`-th call updates the weights."""

    env: Environment
    state: TrainState
    forward: nn.Module  # the wrapped model (DDP); attacks use state.model
    settings: StepSettings
    meters: Meters
    # Of the last batch, uint8 [1 or 2,n,3,H,W]: augmented and mixed, and as the attack left it. Made in every step,
    # also when nobody will look: an output that comes and goes would be another graph.
    preview: Tensor | None = field(default=None, init=False)
    objective: Objective = field(init=False)
    _micro: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        settings = ObjectiveSettings(mixing=self.settings.mixing, attack=self.settings.attack)
        self.objective = make_objective(settings, self.env, self.state.model)

    def __call__(self, batch: Batch, knobs: Knobs) -> bool:
        """One batch on the device. True when it ended an update (accumulation complete)."""
        image, target = self._inputs(batch)
        self._micro += 1
        is_inner = self._micro < self.settings.accumulate
        with self.env.accumulating(self.forward) if is_inner else nullcontext():
            losses = self.objective(self.forward, Inputs(image, target, batch, knobs))
            self.env.backward(losses.loss.mean() / self.settings.accumulate)
        self._show(image, losses.attacked)
        self._measure(losses, batch)
        if not is_inner:
            self._update(knobs)
            self._micro = 0
        self.env.cut()
        return not is_inner

    def _show(self, image: Tensor, attacked: Tensor | None) -> None:
        if self.settings.preview:
            shown = [image] if attacked is None else [image, attacked]
            self.preview = torch.stack([self._shown(each) for each in shown])

    def _shown(self, image: Tensor) -> Tensor:
        """Bytes, because a slice would keep the whole batch in memory."""
        return (image.detach()[: self.settings.preview] * 255.0).round().to(torch.uint8)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        s = self.settings
        image, label = s.augment.before_mix(batch.image, batch.draw, batch.seed), batch.label
        if s.mixing:
            image, target = mix(image, label, batch.draw, num_classes=s.num_classes, smoothing=s.smoothing)
        else:
            target = smooth_one_hot(label, num_classes=s.num_classes, smoothing=s.smoothing)
        return s.augment.after_mix(image, batch.draw, batch.seed), target

    def _measure(self, losses: Losses, batch: Batch) -> None:
        hit = (losses.logits.detach().argmax(dim=1) == batch.label).float()
        values = {name: value.detach() for name, value in losses.values.items()}
        self.meters.add_({"loss": losses.loss.detach(), "top1": hit, **values}, batch.mask)

    def _update(self, knobs: Knobs) -> None:
        optimizer = self.state.optimizer
        assert isinstance(optimizer, TensorLrOptimizer), type(optimizer)
        optimizer.set_lr(knobs["lr"])
        self.env.apply(optimizer, self.state.model, clip_norm=self.settings.clip_norm)
        if self.state.ema is not None:
            self.state.ema.update_(self.state.model)
