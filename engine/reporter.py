"""What a training says now and then: its means, its speed and its pictures."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bits.clock import Clock, Lap
from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState
from engine.guard import Guard, Skips, skips_of
from engine.log import RunLog
from engine.recipe import Recipe
from engine.stop import steps_until_report
from engine.timetable import Numbers, Timetable


@dataclass(slots=True, kw_only=True)
class Reporter:
    """The only place between updates where values travel to the host, and they do so later."""

    env: Environment
    recipe: Recipe
    state: TrainState
    log: RunLog
    meters: Meters
    timetable: Timetable
    guard: Guard | None = None
    skips: Skips | None = field(init=False, default=None)  # as the last report that arrived says
    clock: Clock = field(init=False, default_factory=Clock)
    _next: int = field(init=False)
    _epoch_shown: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """From here on. The first update is always reported: by then every graph of a report exists."""
        self._next = self.state.step + 1
        self.skips = None

    @property
    def is_due(self) -> bool:
        return self.state.step >= self._next or self.state.step == self.timetable.num_updates

    def report(self, numbers: Numbers, preview: Tensor | None) -> None:
        """`numbers` of the last update, `preview` of its images."""
        lap = self.clock.lap()
        # Ranks must agree on the next report, or one would wait for the other in `agree`.
        update_s = lap.total_per_step_s * self.recipe.optim.accumulate
        step_us = self.env.agree(int(update_s * 1e6))
        self._next = self.state.step + steps_until_report(step_us / 1e6, self.recipe.run.report_every)
        totals = self.env.reduce(self._totals())
        self.meters.reset_()
        if self.guard is not None:
            self.guard.reset_skipped_()
        entry = self._entry(lap, numbers)
        self.env.later({"totals": totals}, lambda host: self._write(entry, host["totals"]))
        self._show(preview)

    def _totals(self) -> Tensor:
        """The meters', and the guard's in the last columns: one tensor is one transfer."""
        totals = self.meters.snapshot()
        return totals if self.guard is None else torch.cat((totals, self.guard.columns()), dim=1)

    def _show(self, preview: Tensor | None) -> None:
        """Pictures for the trackers, behind the first report of an epoch. In an entry of their own: `later` copies
        an entry in one graph, and the totals' graph must stay the same."""
        run, step = self.recipe.run, self.state.step
        epoch = self.timetable.epochs_done(step)
        if preview is not None and (run.tensorboard or run.wandb) and epoch > self._epoch_shown:
            self._epoch_shown = epoch
            self.env.later({"preview": preview}, lambda host: self.log.preview(step, host["preview"]))

    def _entry(self, lap: Lap, numbers: Numbers) -> dict[str, float]:
        images = lap.num_steps * self.timetable.global_batch
        return {
            "step": self.state.step,
            "epoch": round(self.state.step / self.timetable.updates_per_epoch, 4),
            "lr": numbers.lr,
            **numbers.warmed_up,
            "images_per_s": round(images / lap.total_s, 2) if lap.total_s else 0.0,
            "data_s": round(lap.data_s, 4),
            "step_s": round(lap.step_s, 6),
            **self.env.counters(),
        }

    def _write(self, entry: dict[str, float], totals: Tensor) -> None:
        num_meters = len(self.meters.names)
        means = self.meters.means(totals[:, :num_meters])
        if self.guard is not None:
            self.skips = skips_of(totals[:, num_meters:], parts=self.env.parts)
            entry = {**entry, "skipped": self.skips.skipped}
        line = (
            f"step {entry['step']:>6}/{self.timetable.num_updates}  epoch {entry['epoch']:<7.2f} "
            f"loss {means['loss']:.4f}  top1 {100 * means['top1']:5.1f} %  lr {entry['lr']:.2e}  "
            f"{entry['images_per_s']:.0f} images/s"
        )
        self.log.report(line, {**entry, **means})
        if self.skips is not None and self.skips.skipped:
            self.log.say(
                f"step {entry['step']}: the gradient was not finite, {self.skips.skipped} updates were left out",
                important=True,
            )
        if means.get("beyond_eps", 0.0) > 0.0:
            raise ValueError(
                f"step {entry['step']}: {100 * means['beyond_eps']:.3g} % of the attacked images lie beyond eps "
                f"(mean distance {means['distance']:.8g}); the attack is broken, no number of this run can be trusted"
            )
