"""Going back to the last healthy checkpoint: how it is done, and what is different afterwards."""

from dataclasses import dataclass

import numpy as np
import torch

from bits.environment import Environment
from bits.state import TrainState
from data.batch import Batch
from data.order import hash64
from engine.agreement import is_same
from engine.bests import restore_best
from engine.health_monitor import HealthMonitor, RollBack
from engine.healthy import find_healthy, forget_after
from engine.keeping import Keeper
from engine.log import RunLog


@dataclass(slots=True, kw_only=True)
class WayBack:
    """Of one run: its state becomes an earlier one, on all processes alike."""

    env: Environment
    state: TrainState
    log: RunLog
    keeper: Keeper
    health: HealthMonitor

    def take(self, cause: RollBack) -> None:
        """To the last healthy checkpoint, with its place in the data. ValueError when there is none, or no more."""
        self.env.barrier()  # rank 0 may be renaming a file that all look for
        found, came_to = find_healthy(self.health.folder, until=self.state.step), self.state.step
        if not is_same(self.env, -1 if found is None else found[0].step):
            raise ValueError(
                "processes found different healthy checkpoints; the run folder must be on a disk that all of them see"
            )
        try:
            self.health.refuse(cause, has_target=found is not None)
        except ValueError:
            self.keeper.save_and_wait()
            raise
        assert found is not None, "refused above"
        self.env.flush()
        self.keeper.load(*found)
        self.health.went_back(found[1]["health"])
        self.env.barrier()  # nobody reads the files any more
        self.keeper.save_anew()
        step, count = self.state.step, self.health.rollbacks
        self.log.write("rollback", step=step, came_to=came_to, reason=cause.reason, rollbacks=count)
        told = self._forget()
        self.log.say(
            f"step {came_to}: {cause.reason}; back to step {step}, other noise, learning rate times "
            f"{self.health.lr_scale:g}{told}",
            important=True,
        )

    def _forget(self) -> str:
        """What lies behind this step; last, because a run killed before it has the newer state, and goes back once
        more. The checkpoints last of all, for the same reason."""
        if self.env.rank != 0:
            return ""
        folder, step = self.health.folder, self.state.step
        told = restore_best(folder, step)
        forget_after(folder, step)
        return f"; {told}" if told else ""


def reseeded(batch: Batch, rollbacks: int) -> Batch:
    """The batch of the `rollbacks`-th way through the same data: whatever the device draws for it is drawn anew.

    Order, crops and mixing stay: they are made by the loader before anybody knows.
    """
    if not rollbacks:
        return batch
    salt = np.array(hash64("rollback", rollbacks)).view(np.int64)
    return batch._replace(seed=batch.seed ^ torch.tensor(int(salt), dtype=torch.int64))
