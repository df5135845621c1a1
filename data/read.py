"""One sample's bytes from its shard: a positioned read, checked against the index.

A read costs about 15 microseconds from the page cache in any order, and touches no shared file position, so
forked and spawned workers need no care.
"""

import os
import zlib
from collections import OrderedDict
from typing import Final

from data.index import DatasetIndex

_MAX_OPEN: Final = (
    256  # below the usual limit of 1024 descriptors, which a data set of 1281 shards would exceed
)


class BadSample(ValueError):
    """One sample is unusable; its shard and string key are in the message and in the fields."""

    def __init__(self, reason: str, *, shard: str, key: str) -> None:
        super().__init__(f"bad sample {key!r} in shard {shard}: {reason}")
        self.reason, self.shard, self.key = reason, shard, key

    def __reduce__(self) -> tuple[object, ...]:
        return _bad_sample, (self.reason, self.shard, self.key)


class ShardReader:
    """Reads by dataset position; keeps the most recently used shards open."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, key: int) -> bytes:
        """Encoded image bytes of the sample at position `key`; BadSample where they differ from the indexed
        ones.
        """
        shard, row = self.index.locate(key)
        record = self.index.records(shard)[row]
        size = int(record["size"])
        content = os.pread(self._descriptor(shard), size, int(record["offset"]))
        if len(content) != size or zlib.crc32(content) != int(record["crc32"]):
            raise self.bad_sample(key, "its bytes differ from the indexed ones (crc32); run `shards verify`")
        return content

    def bad_sample(self, key: int, reason: str) -> BadSample:
        shard, _ = self.index.locate(key)
        return BadSample(reason, shard=self.index.shards[shard].name, key=self.index.name(key))

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __reduce__(self) -> tuple[object, ...]:
        return ShardReader, (self.index,)

    def __del__(self) -> None:
        self.close()

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(
            self.index.root / self.index.shards[shard].name, os.O_RDONLY | os.O_CLOEXEC
        )
        return self._open[shard]


def _bad_sample(reason: str, shard: str, key: str) -> BadSample:
    return BadSample(reason, shard=shard, key=key)
