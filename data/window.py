"""Position in an epoch to position in the dataset, by windows of shards for data that arrives shard by shard.

With data at hand an epoch is one permutation of all samples. Remote data would have to be there whole before the
first batch; `WindowOrder` needs only a few shards at a time and still never splits shards between ranks: the
order stays a pure function of (seed, epoch, position), equal on every layout. Like `data.order`, what this file
computes is part of the data format.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from data.order import hash64, permutation

_permutation = lru_cache(maxsize=2)(permutation)  # 0.15 s for ImageNet; a worker straddles at most two epochs


class Window(NamedTuple):
    """Positions [first, last) of an epoch hold exactly the samples of these shards."""

    first: int
    last: int
    shards: tuple[int, ...]


class SampleOrder(Protocol):
    """What a loader needs of an order. Travels to worker processes."""

    def keys(self, positions: NDArray[np.int64], *, epoch: int) -> NDArray[np.int64]:
        """Positions in the epoch -> positions in the dataset, int64 of the same shape."""

    def windows(self, epoch: int) -> list[Window]:
        """Which shards the epoch needs when."""


class FullOrder:
    """The permutation of the whole epoch: every shard is needed from begin to end."""

    def __init__(self, counts: Sequence[int], *, seed: int) -> None:
        """`counts`: samples of each shard."""
        self.counts, self.seed = tuple(counts), seed
        self.num_samples = sum(self.counts)

    def windows(self, epoch: int) -> list[Window]:
        return [Window(0, self.num_samples, tuple(range(len(self.counts))))]

    def keys(self, positions: NDArray[np.int64], *, epoch: int) -> NDArray[np.int64]:
        return _permutation(self.num_samples, seed=self.seed, epoch=epoch)[positions]


class WindowOrder:
    """Order of epochs that reads `window` shards at a time, for data that arrives shard by shard.

    Each epoch permutes all shards, cuts the list into windows of `window` shards, and permutes the samples of each
    window. Samples sort by the same hash as in `permutation`, so one window over all shards is exactly the full
    permutation. Nothing is computed but the windows that are asked for.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, window: int) -> None:
        """`counts`: samples of each shard."""
        if window < 1:
            raise ValueError(f"window {window} must be at least 1 shard, or None for a full permutation")
        self.counts, self.seed, self.window = tuple(counts), seed, window
        self._ends = np.cumsum(np.array(self.counts, dtype=np.int64))
        self._windows: dict[int, list[Window]] = {}
        self._keys: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def quality(self) -> float:
        """Part of the data set that a sample is shuffled over within an epoch, in (0, 1]."""
        return min(self.window / len(self.counts), 1.0)

    def windows(self, epoch: int) -> list[Window]:
        """In order; the last one holds the shards that are left."""
        if epoch not in self._windows:
            _forget_oldest(self._windows)
            self._windows[epoch] = self._cut(epoch)
        return self._windows[epoch]

    def keys(self, positions: NDArray[np.int64], *, epoch: int) -> NDArray[np.int64]:
        windows = self.windows(epoch)
        lasts = np.array([window.last for window in windows], dtype=np.int64)
        numbers = np.searchsorted(lasts, positions, side="right")
        keys = np.empty_like(positions)
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            keys[inside] = self._permuted(epoch, number)[positions[inside] - windows[number].first]
        return keys

    def _cut(self, epoch: int) -> list[Window]:
        hashed = hash64(self.seed, "shards", epoch, np.arange(len(self.counts), dtype=np.int64))
        order = np.argsort(hashed, kind="stable").tolist()
        windows, first = [], 0
        for start in range(0, len(order), self.window):
            shards = tuple(order[start : start + self.window])
            last = first + sum(self.counts[shard] for shard in shards)
            windows.append(Window(first, last, shards))
            first = last
        return windows

    def _permuted(self, epoch: int, number: int) -> NDArray[np.int64]:
        if (epoch, number) not in self._keys:
            _forget_oldest(self._keys)
            shards = sorted(self.windows(epoch)[number].shards)
            ranges = [np.arange(self._ends[s] - self.counts[s], self._ends[s]) for s in shards]
            keys = np.concatenate(ranges)
            hashed = hash64(self.seed, "order", epoch, keys)
            self._keys[epoch, number] = keys[np.argsort(hashed, kind="stable")]
        return self._keys[epoch, number]


def _forget_oldest(kept: dict[Any, Any]) -> None:
    while len(kept) > 1:  # a batch straddles at most two; a worker that reads ahead comes back to none
        del kept[next(iter(kept))]
