"""A clock that separates the time spent waiting for data from the time spent in steps."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Adds up data time and step time between two reports; `lap()` returns both and starts anew."""

    def __init__(self) -> None:
        self.data_s = 0.0
        self.num_steps = 0
        self._start = time.perf_counter()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields from `batches`; the time until each one arrives counts as data time."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.data_s += time.perf_counter() - before
            self.num_steps += 1
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts neither as data time nor as step time."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - before

    def lap(self) -> "Lap":
        now = time.perf_counter()
        lap = Lap(total_s=now - self._start, data_s=self.data_s, num_steps=self.num_steps)
        self.data_s, self.num_steps, self._start = 0.0, 0, now
        return lap

    def elapsed_s(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self._start


class Lap:
    """What passed between two reports, in seconds."""

    def __init__(self, *, total_s: float, data_s: float, num_steps: int) -> None:
        self.total_s = total_s
        self.data_s = data_s
        self.num_steps = num_steps

    @property
    def step_s(self) -> float:
        """Seconds per step without the waiting for data (0 when no step was made)."""
        return (self.total_s - self.data_s) / self.num_steps if self.num_steps else 0.0

    @property
    def total_per_step_s(self) -> float:
        return self.total_s / self.num_steps if self.num_steps else 0.0
