"""Remote shards fetched before a reader needs them, by the threads of one process per machine.

The order of samples is known, so the shards of the next window come while this one is read. Every process of a
machine says which shards it holds (a lease, so nothing in use is evicted), but one of them leads and downloads;
when it ends, another takes over. Readers never depend on a leader: a shard that nobody fetches they fetch
themselves (`data.download`), and what fails here fails there again, with its message.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from threading import Event, Lock, Thread
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.index import DatasetIndex
from data.order import Cursor
from data.remote import Cancelled
from data.store import RemoteShards
from data.window import SampleOrder

Item = TypeVar("Item")
_THREADS: Final = 4
_IDLE_S: Final = 0.5


class Need(NamedTuple):
    """Shards that are read from position `first` to before `last` of a run."""

    first: int
    last: int
    shards: tuple[int, ...]


def train_needs(order: SampleOrder, start: Cursor, *, num_samples: int, num_epochs: int) -> Iterator[Need]:
    """Windows from `start` on, in positions that count over all epochs."""
    for epoch in range(start.epoch, num_epochs):
        for first, last, shards in order.windows(epoch):
            if epoch > start.epoch or last > start.consumed:
                yield Need(epoch * num_samples + first, epoch * num_samples + last, shards)


def eval_needs(index: DatasetIndex, keys: NDArray[np.int64]) -> Iterator[Need]:
    """Shards in order of their first key among `keys`, which are read in the order given."""
    ends = np.cumsum([shard.num_samples for shard in index.shards])
    shards = np.searchsorted(ends, keys, side="right")
    found, firsts = np.unique(shards, return_index=True)
    lasts = len(keys) - np.unique(shards[::-1], return_index=True)[1]
    for place in np.argsort(firsts, kind="stable").tolist():
        yield Need(int(firsts[place]), int(lasts[place]), (int(found[place]),))


def ahead_of(
    batches: Iterator[Item],
    index: DatasetIndex,
    needs: Iterator[Need],
    *,
    start: int,
    position_after: Callable[[Item], int],
    num_ahead: int,
) -> Iterator[Item]:
    """The same batches, with the shards of the next `num_ahead` needs on their way while they are read. Does
    nothing for local shards.
    """
    if not isinstance(index.store, RemoteShards):
        yield from batches
        return
    ahead = LookAhead(index, index.store, needs, num_ahead=num_ahead)
    try:
        ahead.reach(start)
        for item in batches:
            ahead.reach(position_after(item))
            yield item
    finally:
        ahead.close()


class LookAhead:
    """Follows one reader; downloads while this process leads."""

    def __init__(
        self, index: DatasetIndex, store: RemoteShards, needs: Iterator[Need], *, num_ahead: int
    ) -> None:
        self._shards, self._store = index.shards, store
        self._needs, self._num_ahead = needs, num_ahead
        self._active: deque[Need] = deque()
        self._tried: set[int] = set()
        self._lease = store.cache.lease()
        self._leadership, self._leads = store.cache.lock(f"ahead-{index.dataset_id}"), False
        self._mutex, self._stop, self._news = Lock(), Event(), Event()
        names = (f"look-ahead-{number}" for number in count())
        self._threads = [Thread(target=self._work, name=next(names), daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()

    def reach(self, position: int) -> None:
        """The reader is at `position`: let go of what lies behind, want what comes next."""
        with self._mutex:
            before = list(self._active)
            self._active = deque(need for need in self._active if need.last > position)
            while sum(need.first > position for need in self._active) < self._num_ahead:
                need = next(self._needs, None)
                if need is None:
                    break
                if need.last > position:
                    self._active.append(need)
            if list(self._active) == before:
                return
            wanted = {shard for need in self._active for shard in need.shards}
            self._tried &= wanted
        self._lease.hold(self._shards[shard].sha256 for shard in wanted)
        self._news.set()

    def close(self) -> None:
        """Stop the threads; a download in progress is left as a part, to be continued."""
        self._stop.set()
        self._news.set()
        for thread in self._threads:
            thread.join(timeout=1.0)  # one that waits for a silent server ends by itself, later
        self._lease.release()
        self._leadership.release()

    def _work(self) -> None:
        while not self._stop.is_set():
            shard = None
            with suppress(OSError, ValueError, Cancelled):  # the reader meets the same error and says it
                if self._is_leader() and (shard := self._next()) is not None:
                    self._store.fetch_ahead(self._shards[shard], self._stop)
            if shard is None:
                self._news.wait(_IDLE_S)
                self._news.clear()

    def _is_leader(self) -> bool:
        with self._mutex:
            self._leads = self._leads or (not self._stop.is_set() and self._leadership.acquire())
            return self._leads

    def _next(self) -> int | None:
        with self._mutex:
            for need in self._active:
                for shard in need.shards:
                    if shard not in self._tried:
                        self._tried.add(shard)
                        return shard
        return None
