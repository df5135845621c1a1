"""When things happen in a run, and the numbers of each update: pure functions of the recipe and a count of updates."""

from dataclasses import dataclass
from typing import NamedTuple

from engine.knobs import Knobs, pack_knobs
from engine.recipe import Recipe
from engine.schedule import ema_weight, lr_at, warmup_at
from engine.tracker import WARMED_UP


class Numbers(NamedTuple):
    """What one update uses."""

    lr: float
    warmed_up: dict[str, float]  # values that objective.warmup names, for the log
    knobs: Knobs  # on the host


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Updates count from 0, epochs too."""

    recipe: Recipe
    num_samples: int  # of data.train
    global_batch: int

    @property
    def updates_per_epoch(self) -> float:
        """Not whole when accumulation does not divide the epoch: a group of micro-batches may span two epochs."""
        return self.num_samples // self.global_batch / self.recipe.optim.accumulate

    @property
    def num_updates(self) -> int:
        batches = self.num_samples // self.global_batch * self.recipe.run.epochs
        total = batches // self.recipe.optim.accumulate
        limit = self.recipe.run.max_steps
        return total if limit is None else min(total, limit)

    def epochs_done(self, step: int) -> int:
        """After `step` updates."""
        # The sum of fractions may fall short by a rounding error.
        return int(step / self.updates_per_epoch + 1e-9)

    def ends_epoch(self, step: int) -> bool:
        """Whether the last of `step` updates was the last of an epoch."""
        return step > 0 and self.epochs_done(step) > self.epochs_done(step - 1)

    def checkpoint_due(self, step: int, *, every: int) -> bool:
        """By `run.checkpoint_every`, which a resumed run may have changed: that of now, or that of the first start."""
        return step % every == 0 if every else self.ends_epoch(step)

    def numbers(self, step: int, epoch: int, *, lr_scale: float = 1.0) -> Numbers:
        """Of update `step`, whose images are of `epoch`; `lr_scale` is what rollbacks have left of the rate."""
        optim, objective = self.recipe.optim, self.recipe.objective
        values, attack = warmup_at(objective, epoch), objective.attack
        lr = lr_scale * lr_at(
            optim,
            step,
            steps_per_epoch=self.updates_per_epoch,
            epochs=self.recipe.run.epochs,
            global_batch=self.global_batch,
        )
        eps = attack.eps * values.eps_scale if attack else 0.0
        warmed_up = {
            name: eps if name == "eps" else getattr(values, name)
            for name in WARMED_UP
            if getattr(objective.warmup, name, None) is not None
        }
        knobs = pack_knobs(
            lr=lr,
            eps=eps,
            step_size=attack.step_size * values.eps_scale if attack else 0.0,
            step=step,
            ema_weight=ema_weight(optim, step),
            attack_steps=values.steps or None,
        )
        return Numbers(lr, warmed_up, knobs)
