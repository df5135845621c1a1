"""The checkpoints of a run folder: written, pruned, the best one kept, and read again."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bits.checkpoint import (
    Checkpoint,
    CheckpointError,
    keep_best,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    read_meta,
    save_checkpoint,
)
from bits.environment import Environment
from bits.state import TrainState, to_cpu
from engine.bests import prune_bests, shelve_best
from engine.folder import RunFolder
from engine.healthy import earliest_return, find_healthy
from engine.log import RunLog


@dataclass(slots=True, kw_only=True)
class Keeper:
    """Saves and loads `state` and what the backend must remember."""

    env: Environment
    state: TrainState
    folder: RunFolder
    log: RunLog
    num_kept: int
    facts: Callable[[], dict[str, Any]]  # of now, kept beside the state
    health: Callable[[], dict[str, Any]]  # of now, kept in the state
    _saved_step: int = field(init=False, default=-1)

    def save(self) -> None:
        """A checkpoint of now (rank 0 writes; every rank has the same state). Flushes first, so that what the
        log says was reported is never newer than the state."""
        step = self.state.step
        if step == self._saved_step:
            return
        self.env.flush()
        self.log.flush()
        # Where a tensor is that of all processes, to read one may take all of them.
        state = self._read() if self.env.rank == 0 or self.env.parts == 1 else {}
        if self.env.rank == 0:
            save_checkpoint(self.folder.checkpoints, step, state, facts=self.facts())
            prune_checkpoints(self.folder.checkpoints, self.num_kept, newest=step)
        self._saved_step = step

    def _read(self) -> dict[str, Any]:
        return {
            **self.state.state_dict(),
            "environment": to_cpu(self.env.state_dict()),
            "health": self.health(),
        }

    def save_anew(self) -> None:
        """Over a checkpoint of the same step."""
        self._saved_step = -1
        self.save()

    def save_and_wait(self) -> None:
        """Saves, and holds the other ranks until rank 0 has: launchers end a job soon after its first exit."""
        self.save()
        self.env.barrier()

    def keep_best(self, metric: str, value: float) -> None:
        """A copy of this step's checkpoint as best.pt, if no other was as good."""
        self.save()
        if self.env.rank != 0:
            return
        folder, step = self.folder.checkpoints, self.state.step
        if keep_best(folder, step, metric=metric, value=value, before=lambda: shelve_best(folder)):
            self.log.say(f"best {metric} so far: {100 * value:.2f} % at step {step}")
        prune_bests(folder, earliest=earliest_return(folder, now=step))

    def find(self, source: Path) -> tuple[Checkpoint, dict[str, Any]] | None:
        """Checkpoint file `source`, or the newest usable one in folder `source`; None when it has none."""
        if source.is_file():
            return read_meta(source), load_checkpoint(source)
        try:
            found = latest_checkpoint(source)
        except CheckpointError:
            healthy = find_healthy(source)  # a rollback that was killed while it wrote its state anew
            if healthy is None:
                raise
            self.log.say(
                f"passed over: every step-*.pt is damaged; {healthy[0].path.name} is used", important=True
            )
            return healthy
        if found is None:
            return find_healthy(source)
        for line in found[2]:
            self.log.say(f"passed over: {line}", important=True)
        return found[0], found[1]

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """The state that `find` gave becomes that of the run."""
        self.env.load_state_dict(state["environment"])
        self.state.load_state_dict(state)
        self.env.cut()
        # A state from another run's folder is not this folder's yet, nor is best.pt whose step was deleted since, nor
        # healthy-N.pt whose step-N.pt is damaged.
        own = self.folder.checkpoints / f"step-{self.state.step:08d}.pt"
        is_own = own.name == checkpoint.path.name and own.exists() and own.samefile(checkpoint.path)
        self._saved_step = self.state.step if is_own else -1
