"""Worker processes that write batches into shared slots, in order, and are replaced when they die.

A job is a pure function of a task, so a batch whose worker died, or hangs, is made again by another one: nothing is
lost and nothing comes twice. Each worker has a pipe of its own: a lock or queue that several share could stay locked
by the one that is killed. Through it go a task and the number of a slot, and back comes what went wrong. The batch is
written where it is used: about 20 microseconds of processor time per image of 224 pixels, half of them for writing
it; torch's DataLoader with timm's collation took 210 on the same machine (benchmarks/loader.py).
"""

import pickle
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.bad import BadSample
from data.batch import Batch
from data.slots import Arrays, BatchShape, SharedBlock, Slots, WorkerSlots
from data.workers import start_worker, worker_context

Task = TypeVar("Task", contravariant=True)
Given = TypeVar("Given")
Result = TypeVar("Result")
Pin = Callable[[Tensor], Callable[[], None]]
Warn = Callable[[str], None]
PREFETCH: Final = 2  # batches that each worker makes ahead
LENT: Final = 3  # batches in the consumer's hands: the one in use, the next one, one on its way to a device
MAX_LOSSES: Final = 3  # workers that one batch may cost
STUCK_AFTER_S: Final = 1800.0
_TICK_S: Final = 1.0
_END_S: Final = 5.0  # for a killed process; one that waits for a dead network disk cannot even be killed


class Job(Protocol[Task]):
    """Makes batches. Travels to workers."""

    @property
    def shape(self) -> BatchShape: ...

    def fill(self, task: Task, into: Arrays, at: Callable[[int], None]) -> list[BadSample]:
        """Writes all of the task's batch. `at` is called with each sample's key before it is read. Returns what
        could not be used and was dealt with; ValueError or OSError for what ends the run.
        """


@dataclass(slots=True)
class _Order(Generic[Given]):
    """A batch that is asked for."""

    task: Given
    slot: int
    losses: int = 0
    answer: list[BadSample] | Exception | None = None


@dataclass(slots=True)
class _Worker(Generic[Given]):
    number: int  # its row of the beats
    process: BaseProcess
    pipe: "connection.Connection[Any, Any]"
    orders: deque[_Order[Given]] = field(default_factory=deque)
    beats: int = -1  # samples it had begun when it was last looked at
    still_s: float = 0.0  # how long that has not changed while its batch was waited for


class Pool(Generic[Given]):
    """Workers for one job; `run` once, and they end with it."""

    def __init__(
        self,
        job: Job[Given],
        *,
        num_workers: int,
        name_of: Callable[[int], str],
        stuck_after_s: float = STUCK_AFTER_S,
        warn: Warn | None = None,
        pin: Pin | None = None,
    ) -> None:
        """`name_of`: a key in words, for messages. `stuck_after_s`: how long a worker may be at one sample while
        its batch is waited for. `warn` is told of replaced workers; None warns as Python does. `pin`: page-locks
        memory that a device reads, and returns what undoes that.
        """
        assert num_workers > 0, "a pool without workers makes nothing"
        self._job, self._num_workers = pickle.dumps(job), num_workers
        self._name_of, self._stuck_after_s, self._pin = name_of, stuck_after_s, pin
        self._warn = warn or partial(warnings.warn, category=RuntimeWarning, stacklevel=2)
        self._slots = Slots(job.shape, num_workers * PREFETCH + LENT, num_lent=LENT)
        self._beat_block = SharedBlock(16 * num_workers)
        self._beats = _beats_in(self._beat_block)
        self._workers: list[_Worker[Given]] = []
        self._context = worker_context()

    def run(self, tasks: Iterator[Given]) -> Iterator[tuple[Batch, list[BadSample]]]:
        """The batches in the order of the tasks, each with what `Job.fill` returned."""
        memory = torch.from_numpy(self._slots.block.array(0, self._slots.block.size))
        unpin = self._pin(memory) if self._pin else None
        del memory
        try:
            waiting: deque[_Order[Given]] = deque()
            self._top_up(waiting, tasks)
            while waiting:
                while (answer := waiting[0].answer) is None:
                    self._wait()
                if isinstance(answer, Exception):
                    raise answer
                batch = self._slots.hand_out(waiting.popleft().slot)
                self._top_up(waiting, tasks)
                yield batch, answer
                del batch
        finally:
            self._close()
            if unpin is not None:
                unpin()

    def _top_up(self, waiting: deque[_Order[Given]], tasks: Iterator[Given]) -> None:
        while len(waiting) < self._num_workers * PREFETCH:
            try:
                task = next(tasks)
            except StopIteration:
                return
            order = _Order(task, self._slots.take())
            waiting.append(order)
            worker = self._least_busy()
            worker.orders.append(order)
            _send(worker, order)

    def _least_busy(self) -> _Worker[Given]:
        """A new one as long as all have something to do and there may be more."""
        found = min(self._workers, key=lambda worker: len(worker.orders), default=None)
        if len(self._workers) < self._num_workers and (found is None or found.orders):
            number = len(self._workers)
            found = _Worker(number, *self._start(number))
            self._workers.append(found)
        assert found is not None, "there is at least one worker"
        return found

    def _start(self, number: int) -> tuple[ForkServerProcess, "connection.Connection[Any, Any]"]:
        self._beats[number] = 0
        ours, theirs = self._context.Pipe()
        arguments = (self._job, self._slots, self._beat_block, number, theirs)
        process = self._context.Process(target=_work, args=arguments, name=f"loader-{number}", daemon=True)
        process.start()
        theirs.close()  # or its end would not be seen
        return process, ours

    def _wait(self) -> None:
        """Until a worker answers, ends, or a tick has passed."""
        busy = {worker.pipe: worker for worker in self._workers if worker.orders}
        begin = time.monotonic()
        ready = connection.wait(list(busy), timeout=min(_TICK_S, self._stuck_after_s))
        # Not the time since the last look: a program that was stopped and goes on is not stuck.
        waited = min(time.monotonic() - begin, 2 * _TICK_S)
        for worker in busy.values():
            if worker.pipe in ready:
                self._receive(worker)
            elif self._is_stuck(worker, waited):
                worker.process.kill()
                self._replace(worker, f"did not move for {worker.still_s:.0f} s")

    def _receive(self, worker: _Worker[Given]) -> None:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker, "died")
            return
        worker.still_s = 0.0
        worker.orders.popleft().answer = answer

    def _is_stuck(self, worker: _Worker[Given], waited: float) -> bool:
        beats = int(self._beats[worker.number, 0])
        worker.still_s = worker.still_s + waited if beats == worker.beats else 0.0
        worker.beats = beats
        return worker.still_s > self._stuck_after_s

    def _replace(self, worker: _Worker[Given], what: str) -> None:
        """A new process for what the old one leaves; ChildProcessError when its batch has cost too many."""
        worker.process.join(timeout=_END_S)
        order = worker.orders[0]
        order.losses += 1
        text = f"loader worker {worker.process.pid} {what}{_ending(worker.process)} at {self._place(worker)}"
        if order.losses >= MAX_LOSSES:
            raise ChildProcessError(
                f"{text}, the {MAX_LOSSES}rd for the same batch; see if memory is short (fewer data.num_workers need "
                "less), or look at that image"
            )
        self._warn(f"{text}; another one makes its batch again")
        worker.pipe.close()
        worker.process, worker.pipe = self._start(worker.number)
        worker.beats, worker.still_s = -1, 0.0
        for order in worker.orders:
            _send(worker, order)

    def _place(self, worker: _Worker[Given]) -> str:
        beats, key = self._beats[worker.number].tolist()
        return self._name_of(key) if beats else "its start"

    def _close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()  # it holds nothing that must be put away, and may be in a long batch
        for worker in self._workers:
            worker.process.join(timeout=_END_S)
            if worker.process.exitcode is not None:
                worker.process.close()


def _send(worker: _Worker[Given], order: _Order[Given]) -> None:
    try:
        worker.pipe.send((order.task, order.slot))
    except OSError:  # it died; that is seen, and the order sent again, when its answer is waited for
        return


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f" (exit code {code})"
    return f" (signal {-code})"


def _beats_in(block: SharedBlock) -> NDArray[np.int64]:
    """int64 [workers,2]: how many samples a worker has begun, and the key of the last one."""
    return block.array(0, block.size).view(np.int64).reshape(-1, 2)


def _work(
    packed: bytes,
    slots: WorkerSlots,
    beat_block: SharedBlock,
    number: int,
    pipe: "connection.Connection[Any, Any]",
) -> None:
    """A worker's life. `packed`: its job, unpacked where an error is an answer (such as: the index has changed)."""
    start_worker()
    job = _attempt(partial(pickle.loads, packed))
    beat = _beats_in(beat_block)[number]

    def at(key: int) -> None:
        beat[1] = key
        beat[0] += 1

    while True:
        try:
            task, slot = pipe.recv()
            pipe.send(
                job
                if isinstance(job, Exception)
                else _attempt(partial(job.fill, task, slots.arrays(slot), at))
            )
        except (EOFError, OSError):  # the pipe's other end is closed: nobody wants more
            return


def _attempt(work: Callable[[], Result]) -> Result | Exception:
    """What comes of it, or an error that travels."""
    try:
        return work()
    except (ValueError, OSError) as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a class that does not travel
            return ValueError(str(error))
        return error
    except Exception:  # a bug, which is to be seen as one
        return RuntimeError(f"in a loader worker:\n{traceback.format_exc()}")
