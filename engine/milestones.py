"""What is due behind an update: a checkpoint, the evaluations of an epoch; and going on from a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bits.state import TrainState
from engine.health_monitor import HealthMonitor
from engine.keeping import Keeper
from engine.measure import result_name
from engine.origin import Origin
from engine.recipe import Recipe
from engine.reporter import Reporter
from engine.stop import Stopped
from engine.timetable import Timetable


@dataclass(slots=True, kw_only=True)
class Milestones:
    """Of one run."""

    recipe: Recipe
    state: TrainState
    timetable: Timetable
    keeper: Keeper
    health: HealthMonitor
    reporter: Reporter
    origin: Origin
    evaluate: Callable[[int | None], list[dict[str, Any]]]  # after how many epochs; None: at the end

    def pass_by(self) -> None:
        """Behind each update."""
        self._save_scheduled()
        if self.timetable.ends_epoch(self.state.step):
            self._evaluate_epoch()

    def _save_scheduled(self) -> None:
        is_due = self.timetable.checkpoint_due(self.state.step, every=self.recipe.run.checkpoint_every)
        if is_due or self._may_return:
            skips = self.health.look()
            self.keeper.save()
            if self._may_return:
                self.health.saved(skips)

    @property
    def _may_return(self) -> bool:
        """Whether the checkpoint of this step is one that the run may go back to."""
        return self.state.step > 0 and self.timetable.checkpoint_due(
            self.state.step, every=self.origin.checkpoint_every
        )

    def _evaluate_epoch(self) -> None:
        try:
            self.measure(self.timetable.epochs_done(self.state.step))
        except Stopped:
            self.keeper.save_and_wait()
            raise

    def measure(self, epoch: int | None) -> list[dict[str, Any]]:
        """The evaluations due after `epoch` epochs (None: the end of the run), and the best weights kept."""
        with self.reporter.clock.paused():  # or minutes of it would pass for slow training steps
            results = self.evaluate(epoch)
        metric = self.recipe.run.best
        for result in results:
            if metric is not None and result_name(result) == metric:
                self.keeper.keep_best(metric, result["top1"])
        return results

    def resume(self, source: Path) -> bool:
        """Loads checkpoint file `source`, or the newest usable one in folder `source`; False when it has none."""
        found = self.keeper.find(source)
        if found is None:
            return False
        checkpoint, state = found
        self.origin.adopt(checkpoint)
        self.keeper.load(checkpoint, state)
        self.health.load_state_dict(state.get("health", {}))
        self.reporter.begin()
        return True

    def settle(self) -> None:
        """Behind `resume`, once the folder is this run's: what a kill has kept from being named is."""
        self.health.renew(is_due=self._may_return)
