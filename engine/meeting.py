"""Where processes that work at their own pace meet at the end: files beside the ledger. And where they cannot.

A collective gives up after some minutes, and a process may be an hour ahead of another. A file waits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bits.checkpoint import write_atomic
from bits.environment import Environment
from engine.eval_fields import AnyEval, AutoAttackEval
from engine.stop import Stopped

DONE, STOPPED = "done", "stopped"
_POLL_S = 0.2
_LOOK_S = 1.0  # between two looks for others that have stopped


def check_pace(env: Environment, evals: Sequence[AnyEval]) -> None:
    """ValueError for an evaluation whose processes would each go its own way where all devices run one program."""
    names = [entry.name for entry in evals if isinstance(entry, AutoAttackEval)]
    if names and env.parts != env.world_size:
        raise ValueError(
            f"evals: {names[0]} is an AutoAttack, whose processes work at their own pace, and the {env.world_size} "
            "hosts of a pod run one program; leave it out, and run `attack` on the run folder on a TPU VM of one host, "
            "or on GPUs"
        )


@dataclass(slots=True, kw_only=True)
class Meeting:
    """Of all processes of `env`, in `folder`, which all of them see."""

    env: Environment
    folder: Path
    name: str
    _looked: float = 0.0

    def open(self) -> None:
        """Takes away what an earlier run has left; all processes call it before any of them works."""
        if self.env.world_size > 1:
            self._file(self.env.rank).unlink(missing_ok=True)
            self._round_file(self.env.rank).unlink(missing_ok=True)
            self.env.barrier()

    def reach(self, number: int, stop_asked: Callable[[], bool]) -> None:
        """Waits until all processes have made `number` rounds; raises Stopped when one was asked to stop."""
        if self.env.world_size == 1:
            return
        write_atomic(self._round_file(self.env.rank), str(number).encode())
        while any(made < number for made in self._rounds()):
            if stop_asked() or STOPPED in self._words():
                raise Stopped
            time.sleep(_POLL_S)

    def leave(self, word: str) -> None:
        """This process has come to its end: DONE or STOPPED."""
        if self.env.world_size > 1:
            write_atomic(self._file(self.env.rank), word.encode())

    def is_stopped(self) -> bool:
        """Whether another process has stopped; looks once a second."""
        if self.env.world_size == 1 or time.monotonic() - self._looked < _LOOK_S:
            return False
        self._looked = time.monotonic()
        return STOPPED in self._words()

    def wait(self) -> bool:
        """Waits for all; whether every one of them is DONE. A process that dies takes the others along (launcher)."""
        while len(words := self._words()) < self.env.world_size:
            if self.env.world_size == 1:
                return True
            time.sleep(_POLL_S)
        self.env.barrier()  # before anybody takes its file away
        self._file(self.env.rank).unlink(missing_ok=True)
        self._round_file(self.env.rank).unlink(missing_ok=True)
        return STOPPED not in words

    def _words(self) -> list[str]:
        files = (self._file(rank) for rank in range(self.env.world_size))
        return [file.read_text() for file in files if file.exists()]

    def _rounds(self) -> list[int]:
        files = [self._round_file(rank) for rank in range(self.env.world_size)]
        return [int(file.read_text()) if file.exists() else 0 for file in files]

    def _round_file(self, rank: int) -> Path:
        return self.folder / f"{self.name}-rank-{rank}.round"

    def _file(self, rank: int) -> Path:
        return self.folder / f"{self.name}-rank-{rank}.here"
