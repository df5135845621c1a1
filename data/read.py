"""One sample's bytes from its shard: a positioned read, checked against the index.

A read costs about 15 microseconds from the page cache in any order, and touches no shared file position, so
forked and spawned workers need no care. A remote shard is waited for when it is first read; where the cache
has no room for it, samples come one by one from its URL.
"""

import os
import time
import zlib
from collections import OrderedDict
from typing import Final

import numpy as np

from data.bad import BadSample, CutShard
from data.index import DatasetIndex
from data.store import NoRoom

__all__ = ["BadSample", "ShardReader"]

_MAX_OPEN: Final = (
    256  # below the usual limit of 1024 descriptors, which a data set of 1281 shards would exceed
)
_ROOM_AGAIN_S: Final = 30.0  # how long samples come one by one before the cache is asked for room again


class ShardReader:
    """Reads by dataset position; keeps the most recently used shards open."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._open: OrderedDict[int, int] = OrderedDict()
        self._no_room: dict[int, float] = {}  # shard -> when the cache may be asked again

    def read(self, key: int) -> bytes:
        """Encoded image bytes of the sample at position `key`; BadSample where they differ from the indexed ones,
        CutShard where the shard ends before them.
        """
        shard, row = self.index.locate(key)
        record = self.index.records(shard)[row]
        content = self._content(shard, record)
        if not _fits(content, record):
            self._forget(shard)
            self.index.store.doubt(self.index.shards[shard])
            content = self._content(shard, record)
        if len(content) < int(record["size"]):
            raise self._short_shard(shard, record, key)
        if not _fits(content, record):
            raise self.bad_sample(key, "its bytes differ from the indexed ones (crc32); run `shards verify`")
        return content

    def bad_sample(self, key: int, reason: str) -> BadSample:
        shard, _ = self.index.locate(key)
        return BadSample(reason, shard=self.index.shards[shard].name, key=self.index.name(key), position=key)

    def _short_shard(self, shard: int, record: np.void, key: int) -> CutShard:
        name, end = self.index.shards[shard].name, int(record["offset"]) + int(record["size"])
        return CutShard(
            f"shard {name} was cut while it was in use: it ends before byte {end}, where sample "
            f"{self.index.name(key)!r} does; fetch it again and see to it with `shards verify {self.index.root}`"
        )

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __reduce__(self) -> tuple[object, ...]:
        return ShardReader, (self.index,)

    def __del__(self) -> None:
        self.close()

    def _content(self, shard: int, record: np.void) -> bytes:
        offset, size = int(record["offset"]), int(record["size"])
        if shard in self._open or time.monotonic() >= self._no_room.get(shard, 0.0):
            try:
                return os.pread(self._descriptor(shard), size, offset)
            except NoRoom as error:
                if not self._no_room:
                    self.index.store.warn_no_room(error)
                self._no_room[shard] = time.monotonic() + _ROOM_AGAIN_S
        return self.index.store.read(self.index.shards[shard], offset, size)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._close_evicted()
        self._open[shard] = self.index.store.open(self.index.shards[shard], self._close_evicted)
        return self._open[shard]

    def _close_evicted(self) -> None:
        """A file that is unlinked keeps its room on the disk while somebody has it open."""
        for shard in [shard for shard, file in self._open.items() if os.fstat(file).st_nlink == 0]:
            self._forget(shard)

    def _forget(self, shard: int) -> None:
        if shard in self._open:
            os.close(self._open.pop(shard))


def _fits(content: bytes, record: np.void) -> bool:
    return len(content) == int(record["size"]) and zlib.crc32(content) == int(record["crc32"])
