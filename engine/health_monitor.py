"""What a run knows of its own health: updates left out, checks of its robustness, and when it has to go back.

Everything here is counted in updates, and what a decision needs stands in the checkpoints: a run that was killed
decides as one that was not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bits.environment import Environment
from bits.state import TrainState
from data.augment import DeviceAugment
from data.batch import Batch
from engine.guard import EXTRA_FP16, Guard, Skips
from engine.health import Probe, Watch, check
from engine.health_fields import HealthSection
from engine.healthy import forget_names_after, name_candidate, promote_candidate
from engine.knobs import Knobs
from engine.log import RunLog
from engine.recipe import Recipe


class RollBack(Exception):
    """The training must go back; `reason` in words, `first` the step (from 0) where it went wrong."""

    def __init__(self, reason: str, *, first: int) -> None:
        super().__init__(reason)
        self.reason, self.first = reason, first


@dataclass(slots=True, kw_only=True)
class HealthMonitor:
    """Of one run. `RollBack` comes out of `conclude`, `heed` and `look`, on all processes alike."""

    env: Environment
    recipe: Recipe
    state: TrainState
    log: RunLog
    folder: Path  # of the checkpoints
    augment: DeviceAugment
    rollbacks: int = field(init=False, default=0)
    watch: Watch = field(init=False, default=Watch())
    guard: Guard | None = field(init=False, default=None)
    _probe: Probe | None = field(init=False, default=None)
    _measured: dict[str, float] = field(init=False, default_factory=dict)
    _is_warm: bool = field(init=False, default=False)  # a check was made in this process

    def __post_init__(self) -> None:
        health, attack = self.settings, self.recipe.objective.attack
        if health.max_skips is not None:
            # The loss scaler leaves updates out as a matter of course until its scale fits.
            limit = health.max_skips + EXTRA_FP16 * (self.env.precision == "fp16")
            self.guard = Guard(self.state.model, limit=limit, device=self.env.device)
        if health.every is not None and attack is not None:
            self._probe = Probe(
                env=self.env,
                model=self.state.model,
                attack=attack,
                settings=health,
                augment=self.augment,
            )

    @property
    def settings(self) -> HealthSection:
        return self.recipe.run.health

    @property
    def lr_scale(self) -> float:
        """Factor of the learning rate after the rollbacks so far."""
        return float(self.settings.rollback_lr**self.rollbacks)

    def examine(self, batch: Batch, knobs: Knobs) -> bool:
        """A check on the device, behind an update, if one is due; whether `conclude` is to follow.

        One more behind the first update of a process, which is logged and not judged: on XLA its graphs are needed by
        then.
        """
        every = self.settings.every
        if self._probe is None or every is None:
            return False
        is_due = self.state.step % every == 0
        if is_due or not self._is_warm:
            self._is_warm = True
            probe, step = self._probe, self.state.step
            probe(batch, knobs["eps"])
            totals = self.env.reduce(probe.meters.snapshot())
            probe.meters.reset_()
            self.env.later(
                {"health": totals}, lambda host: self._note(step, probe.meters.means(host["health"]))
            )
        return is_due

    def _note(self, step: int, means: dict[str, float]) -> None:
        self._measured = means
        gap = means["fgsm_top1"] - means["pgd_top1"]
        self.log.write("health", step=step, **means, gap=gap, rollbacks=self.rollbacks)

    def conclude(self) -> None:
        """Waits for the check and judges it; an alarm is said, and may be a reason to go back."""
        self.env.flush()
        found = self._measured
        self.watch, why = check(
            self.watch, fgsm=found["fgsm_top1"], pgd=found["pgd_top1"], settings=self.settings
        )
        step = self.state.step
        if self.watch.low == 0 and self.env.rank == 0:
            promote_candidate(self.folder, until=step)
        if why is None:
            return
        self.log.write("alarm", step=step, reason=why)
        self.log.say(f"step {step}: catastrophic overfitting? {why}", important=True)
        if self.settings.rollback:
            assert self.settings.every is not None, "an alarm without checks"
            raise RollBack(why, first=step - self.settings.patience * self.settings.every)

    def heed(self, skips: Skips | None) -> None:
        """`skips` as a report or a read says them."""
        if self.guard is None or skips is None or skips.streak < self.guard.limit:
            return
        raise RollBack(
            f"the gradient was not finite in {self.guard.limit} updates in a row", first=skips.first
        )

    def look(self) -> Skips | None:
        """Heeds what the device says now: a host read, where a state is saved anyway and at the end."""
        skips = None if self.guard is None else self.guard.read()
        self.heed(skips)
        return skips

    def saved(self, skips: Skips | None) -> None:
        """A checkpoint of this step was just written, one of those to go back to; `skips` as `look` gave them before.

        By what stands in that checkpoint alone, so that `renew` says the same.
        """
        if self.env.rank != 0 or (skips is not None and skips.streak):
            return
        step = self.state.step
        name_candidate(self.folder, step)
        every = None if self._probe is None else self.settings.every
        if every is None or (step % every == 0 and self.watch.low == 0):
            promote_candidate(self.folder, until=step)

    def renew(self, *, is_due: bool) -> None:
        """The run goes on from a checkpoint in its folder; `is_due`: one of those to go back to. What a kill has kept
        from being named is, and what lies ahead is no more."""
        if self.env.rank == 0:
            forget_names_after(self.folder, self.state.step)
        if is_due:
            self.saved(None if self.guard is None else self.guard.read())

    def refuse(self, cause: RollBack, *, has_target: bool) -> None:
        """ValueError when the run may not go back once more."""
        steps = f"updates {cause.first + 1} to {self.state.step}"
        if not has_target:
            raise ValueError(
                f"{steps}: {cause.reason}, and there is no healthy checkpoint to go back to; lower optim.lr, or save "
                "more often (run.checkpoint_every)"
            )
        if self.rollbacks >= self.settings.max_rollbacks:
            raise ValueError(
                f"{steps}: {cause.reason}, after {self.rollbacks} rollbacks (run.health.max_rollbacks); the state is "
                "saved; lower optim.lr, or clip gradients (optim.clip_norm)"
            )

    def went_back(self, saved: Mapping[str, Any]) -> None:
        """The state is that of a healthy checkpoint, `saved` its part of this class."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(saved)
        self.rollbacks = rollbacks

    def state_dict(self) -> dict[str, Any]:
        counts = torch.zeros(3, dtype=torch.int64) if self.guard is None else self.guard.counts.cpu().clone()
        return {
            "rollbacks": self.rollbacks,
            "best": self.watch.best,
            "low": self.watch.low,
            "counts": counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Empty for a run of a version that had none."""
        if not state:
            return
        self.rollbacks, self.watch = state["rollbacks"], Watch(state["best"], state["low"])
        counts: Tensor = state["counts"]
        if self.guard is not None:
            self.guard.load_(counts)
