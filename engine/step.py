"""The train step: mix, attack, forward, backward, update. Static shapes, no host read, a fixed set of graphs."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bits.environment import Environment
from bits.meters import Meters
from bits.noise import noise
from bits.state import TrainState
from data.augment import NO_AUGMENT, DeviceAugment
from data.batch import START, Batch
from data.mix import mix, smooth_one_hot
from engine.build import build_augment, mix_settings
from engine.fields import AttackSection
from engine.knobs import Knobs
from engine.optim import TensorLrOptimizer
from engine.recipe import Recipe
from robust.pgd import PGD, no_cut
from robust.threat import THREATS

METERS = ("loss", "top1")
ATTACK_STREAM = 0x61747461636B  # "attack": keeps the attack's noise apart from other uses of a sample's seed


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


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_c target log softmax(logits), float32, per sample: (N,K) and (N,K) -> (N,)."""
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1)


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
    _micro: int = field(default=0, init=False)

    def __call__(self, batch: Batch, knobs: Knobs) -> bool:
        """One batch on the device. True when it ended an update (accumulation complete)."""
        image, target = self._inputs(batch)
        shown = [self._shown(image)]
        if self.settings.attack is not None:
            image = self._attack(self.settings.attack, image, batch, target, knobs)
            shown.append(self._shown(image))
        self.preview = torch.stack(shown) if self.settings.preview else None
        self._micro += 1
        if self._micro < self.settings.accumulate:
            with self.env.accumulating(self.forward):
                self._backward(image, target, batch)
            self.env.cut()
            return False
        self._backward(image, target, batch)
        self._update(knobs)
        self._micro = 0
        self.env.cut()
        return True

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

    def _attack(
        self, attack: AttackSection, image: Tensor, batch: Batch, target: Tensor, knobs: Knobs
    ) -> Tensor:
        """The adversarial batch. Hard labels unless mixing is on, without smoothing (Bai et al. 2021, code)."""
        model = self.state.model
        pgd = build_pgd(
            self.env,
            norm=attack.norm,
            steps=attack.steps,
            step_size=knobs["step_size"],
            random_start=attack.random_start,
            clean_prob=attack.clean_prob,
        )
        goal = target if self.settings.mixing else batch.label
        # BatchNorm statistics must not see half-made adversarial images, and dropout would hide gradients.
        model.train(attack.mode == "train")
        # fp16 without a loss scale makes most gradients of a confident model zero (77 to 85 % on the quickstart's
        # models with logits x5), and a zero gradient moves no pixel: there the attack runs in float32.
        with nullcontext() if self.env.precision == "fp16" else self.env.autocast():
            adversarial = pgd(
                model,
                image,
                goal,
                eps=knobs["eps"],
                seed=batch.seed ^ ATTACK_STREAM,
                start_u=batch.draw[:, START],
            )
        model.train()
        return adversarial

    def _backward(self, image: Tensor, target: Tensor, batch: Batch) -> None:
        with self.env.autocast():
            logits = self.forward(image)
        losses = soft_cross_entropy(logits, target)
        self.env.backward(losses.mean() / self.settings.accumulate)
        hit = (logits.detach().argmax(dim=1) == batch.label).float()
        self.meters.add_({"loss": losses.detach(), "top1": hit}, batch.mask)

    def _update(self, knobs: Knobs) -> None:
        optimizer = self.state.optimizer
        assert isinstance(optimizer, TensorLrOptimizer), type(optimizer)
        optimizer.set_lr(knobs["lr"])
        self.env.apply(optimizer, self.state.model, clip_norm=self.settings.clip_norm)
        if self.state.ema is not None:
            self.state.ema.update_(self.state.model)


def build_pgd(
    env: Environment,
    *,
    norm: Literal["linf", "l2"],
    steps: int,
    step_size: Tensor | float,
    random_start: bool,
    clean_prob: float = 0.0,
    restarts: int = 1,
    best_iterate: bool = False,
) -> PGD:
    """PGD as a recipe describes it. Graphs are cut between attack steps when there are several, so that the
    number of steps does not grow the graph; a single step stays in one graph with the update."""
    return PGD(
        threat=THREATS[norm],
        steps=steps,
        step_size=step_size,
        noise=noise,
        start="uniform" if random_start else "clean",
        clean_prob=clean_prob,
        restarts=restarts,
        best_iterate=best_iterate,
        cut=env.cut if steps > 1 or restarts > 1 else no_cut,
    )
