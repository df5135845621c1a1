"""The train step: augment, mix, objective, backward, update. Static shapes, no host read, a fixed set of graphs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bits.environment import Clip, Environment, StepWatch
from bits.meters import Meters
from bits.state import TrainState
from data.augment import NO_AUGMENT, DeviceAugment
from data.batch import Batch
from data.mix import mix, smooth_one_hot
from engine.build import build_augment, mix_settings
from engine.clipping import clip_of
from engine.guard import Guard
from engine.knobs import Knobs
from engine.objective import (
    Inputs,
    Losses,
    Objective,
    ObjectiveSettings,
    is_right,
    make_objective,
    objective_meters,
)
from engine.optim import TensorLrOptimizer
from engine.recipe import Recipe
from robust.threat import distance, slack

METERS = ("loss", "top1")
ATTACK_METERS = (
    "distance",
    "beyond_eps",
)  # of attacked images: how far they are, and the share of those too far


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What the step needs of a recipe: all of it constant over a run, so that graphs are too."""

    objective: ObjectiveSettings
    smoothing: float
    clip: Clip | None
    accumulate: int
    ema_warmup: bool = False  # the average takes its weight from the knobs
    replays: int = 1  # of a batch, in free training
    preview: int = 0  # images of each batch that stay to be looked at
    augment: DeviceAugment = NO_AUGMENT


def step_settings(recipe: Recipe, num_classes: int) -> StepSettings:
    """The step's constants. Mixing is on when any epoch mixes, so that a warm-up from 0 adds no graph."""
    objective = recipe.objective
    return StepSettings(
        objective=ObjectiveSettings(
            num_classes=num_classes,
            mixing=any(mix_settings(recipe, epoch).is_on for epoch in range(recipe.run.epochs)),
            kind=objective.kind,
            attack=objective.attack,
            loss=objective.loss,
            clean_weight=objective.clean_weight,
            beta=objective.beta,
            distill=objective.distill,
        ),
        smoothing=objective.smoothing,
        clip=clip_of(recipe.optim),
        accumulate=recipe.optim.accumulate,
        ema_warmup=recipe.optim.ema_warmup,
        replays=objective.replays if objective.kind == "free" else 1,
        preview=recipe.run.preview_images,
        augment=build_augment(recipe),
    )


def meter_names(settings: StepSettings) -> tuple[str, ...]:
    """What a step measures: its own meters and those of its objective."""
    own = METERS if settings.objective.kind == "clean" else METERS + ATTACK_METERS
    return own + objective_meters(settings.objective)


@dataclass(slots=True)
class TrainStep:
    """Calls on consecutive batches; every `accumulate`-th call updates the weights."""

    env: Environment
    state: TrainState
    forward: nn.Module  # the wrapped model (DDP); attacks use state.model
    settings: StepSettings
    meters: Meters
    teacher: Callable[[Tensor], Tensor] | None = None
    guard: Guard | None = None  # leaves out updates that are not finite
    warn: Callable[[str], None] = (
        lambda text: None
    )  # is told, once, of a step that is not like those before it
    # Of the last batch, uint8 [1 or 2,n,3,H,W]: augmented and mixed, and as the attack left it. Made in every step,
    # also when nobody will look: an output that comes and goes would be another graph.
    preview: Tensor | None = field(default=None, init=False)
    objective: Objective = field(init=False)
    watch: StepWatch = field(init=False)
    micro: int = field(default=0, init=False)  # micro-batches of this update so far

    def __post_init__(self) -> None:
        self.watch = self.env.watch(calls=self.settings.accumulate, warn=self.warn)
        self.objective = make_objective(self.settings.objective, self.env, self.state.model, self.teacher)

    def __call__(self, batch: Batch, knobs: Knobs) -> bool:
        """One batch on the device. True when it ended an update (accumulation complete)."""
        with self.watch.step(batch._asdict(), at=f"step {self.state.step + 1}"):
            return self._run(batch, knobs)

    def _run(self, batch: Batch, knobs: Knobs) -> bool:
        ended = self._made(batch, knobs)
        # Out here no tensor of the step is held any more: on XLA it would be an output of the graph, written each time.
        self.env.cut()
        return ended

    def _made(self, batch: Batch, knobs: Knobs) -> bool:
        image, target = self._inputs(batch)
        if self.guard is not None and self.micro == 0:
            self.guard.before()
        self.micro += 1
        is_inner = self.micro < self.settings.accumulate
        with self.env.accumulating(self.forward) if is_inner else nullcontext():
            losses = self.objective(self.forward, Inputs(image, target, batch, knobs))
            self.env.backward(losses.loss.mean() / self.settings.accumulate)
        self._show(image, losses.attacked)
        self._measure(losses, Inputs(image, target, batch, knobs))
        if not is_inner:
            self._update(knobs)
            self.micro = 0
        return not is_inner

    def _show(self, image: Tensor, attacked: Tensor | None) -> None:
        if self.settings.preview:
            shown = [image] if attacked is None else [image, attacked]
            self.preview = torch.stack([self._shown(each) for each in shown])

    def _shown(self, image: Tensor) -> Tensor:
        """The first of each device's images, so that none travels, in every step, for what few steps show. Bytes,
        because a slice would keep the whole batch in memory."""
        each = -(-self.settings.preview // self.env.spread)
        found = image.detach().reshape(self.env.spread, -1, *image.shape[1:])[:, :each].flatten(0, 1)
        return (found * 255.0).round().to(torch.uint8)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        s, num_classes = self.settings, self.settings.objective.num_classes
        image, label = s.augment.before_mix(batch.image, batch.draw, batch.seed), batch.label
        if s.objective.mixing:
            image, target = mix(image, label, batch.draw, num_classes=num_classes, smoothing=s.smoothing)
        else:
            target = smooth_one_hot(label, num_classes=num_classes, smoothing=s.smoothing)
        return s.augment.after_mix(image, batch.draw, batch.seed), target

    def _measure(self, losses: Losses, inputs: Inputs) -> None:
        hit = is_right(losses.logits, inputs.batch.label)
        values = {name: value.detach() for name, value in losses.values.items()}
        if losses.attacked is not None:
            values |= self._moved(inputs.image, losses.attacked.detach(), inputs.knobs["eps"])
        self.meters.add_({"loss": losses.loss.detach(), "top1": hit, **values}, inputs.batch.mask)

    def _moved(self, image: Tensor, attacked: Tensor, eps: Tensor) -> dict[str, Tensor]:
        attack = self.settings.objective.attack
        assert attack is not None, "attacked images without an attack"
        moved = distance(attacked, image, attack.norm)
        limit = eps + slack(attack.norm, attack.eps, image.shape[1:])
        return {"distance": moved, "beyond_eps": (moved > limit).float()}

    def _update(self, knobs: Knobs) -> None:
        optimizer = self.state.optimizer
        assert isinstance(optimizer, TensorLrOptimizer), type(optimizer)
        optimizer.set_lr(knobs["lr"])
        optimizer.ok = ok = None if self.guard is None else self.guard.judge(knobs["step"])
        self.env.apply(optimizer, self.state.model, clip=self.settings.clip)
        optimizer.ok = None  # held over a cut, it would be an output of the graph
        if self.state.ema is not None:
            weight = knobs["ema_weight"] if self.settings.ema_warmup else None
            if ok is not None:
                weight = torch.where(ok, 1.0 - self.state.ema.decay if weight is None else weight, 0.0)
            self.state.ema.update_(self.state.model, weight)
