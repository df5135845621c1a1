"""What becomes of a sample that cannot be used: its name, its stand-in, and the limit of a run.

A damaged structure (a shard that is missing, short or another one) ends a run at once; this is about single images.
"""

from collections.abc import Iterator
from typing import Final

MAX_TRIES: Final = (
    100  # stand-ins that are tried for one sample: if none of so many can be used, the data is lost
)


class BadSample(ValueError):
    """One sample is unusable; its shard, string key and position in the data set (-1: it has none) are in the
    fields, the first two in the message too.
    """

    def __init__(self, reason: str, *, shard: str, key: str, position: int = -1) -> None:
        super().__init__(f"bad sample {key!r} in shard {shard}: {reason}")
        self.reason, self.shard, self.key, self.position = reason, shard, key, position

    def __reduce__(self) -> tuple[object, ...]:
        return _bad_sample, (self.reason, self.shard, self.key, self.position)


class DataLimit(ValueError):
    """More bad samples than a run may have."""

    exit_code: Final = 3


def stand_ins(position: int, num_samples: int) -> Iterator[int]:
    """The positions of an epoch whose sample may stand in for that at `position`, in the order in which they are
    tried: the next ones up to the epoch's end, then those before it, backwards. At most MAX_TRIES.

    The stand-in keeps the random numbers of the place it takes. Which one it is depends on the order and on what
    is damaged, so it is the same on every layout and after a restart; a remote window's shards are at hand.
    """
    stop = min(num_samples, position + 1 + MAX_TRIES)
    yield from range(position + 1, stop)
    left = MAX_TRIES - (stop - position - 1)
    yield from range(position - 1, max(-1, position - 1 - left), -1)


def _bad_sample(reason: str, shard: str, key: str, position: int) -> BadSample:
    return BadSample(reason, shard=shard, key=key, position=position)
