"""Which sample stands where: pure functions of (seed, epoch, position), the same on every layout.

Nothing here knows ranks, workers or batch shapes, so those may change between a run and its continuation. The
numbers this file produces are part of the data format: changing a constant changes every order ever
published, and tests hold golden values for them.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014); constants of
# java.util.SplittableRandom with Stafford's mix 13, the variant that Vigna publishes as splitmix64.c.
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MUL_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2: Final = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_MASK: Final = (1 << 64) - 1


class Cursor(NamedTuple):
    """How far training has come: `consumed` samples of epoch `epoch`; the whole sampler state."""

    epoch: int
    consumed: int


def hash64(*parts: int | str | NDArray[np.integer]) -> NDArray[np.uint64]:
    """Mix the parts, in order, into uint64 of their broadcast shape; equal on every machine, for ever.

    h starts at the golden gamma; each part p does h = mix(h ^ mix(p + gamma)) with splitmix64's mix. Integers
    count modulo 2**64; a string is blake2b of its UTF-8 bytes with an 8-byte digest, little endian. For fixed
    other parts the map is a bijection of each integer part, so distinct positions never collide.
    """
    with np.errstate(over="ignore"):  # wrap-around is the arithmetic meant here
        mixed: NDArray[np.uint64] = np.asarray(_GAMMA)
        for part in parts:
            mixed = _mix(mixed ^ _mix(_as_uint64(part) + _GAMMA))
    return np.asarray(mixed)


def text_to_int(text: bytes) -> int:
    """The 64-bit integer that stands for UTF-8 text in hash64; hash64 of either is the same."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniform(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Hashes to numbers strictly inside (0, 1), 52 bits; endpoints never appear, so quantile functions stay
    finite.
    """
    inside: NDArray[np.float64] = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return inside


def as_seed(hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The same 64 bits as int64, the integer type that tensors have."""
    return hashed.view(np.int64)


def permutation(num_samples: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of one epoch, int64 [num_samples]: position in the epoch -> position in the dataset.

    A stable argsort of hashes rather than a library shuffle, whose algorithm may change between versions.
    """
    hashed = hash64(seed, "order", epoch, np.arange(num_samples, dtype=np.int64))
    return np.argsort(hashed, kind="stable").astype(np.int64, copy=False)


def sample_seed(positions: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 seeds of the samples' own streams. In training a position counts along the epoch, in evaluation
    it is the key and the epoch is 0.
    """
    return as_seed(hash64(seed, "sample", epoch, positions))


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the tail is dropped."""
    if global_batch < 1:
        raise ValueError(f"global batch {global_batch} must be at least 1")
    if num_samples < global_batch:
        raise ValueError(
            f"the dataset has {num_samples} samples, fewer than one global batch of {global_batch}; "
            f"lower the batch size to at most {num_samples}"
        )
    return num_samples // global_batch


def advance(cursor: Cursor, num_samples: int, *, global_batch: int) -> Cursor:
    """The cursor after one global batch; where no whole batch is left it stands at the next epoch's start."""
    return _settle(Cursor(cursor.epoch, cursor.consumed + global_batch), num_samples, global_batch)


def plan_train(num_samples: int, global_batch: int, start: Cursor, num_epochs: int) -> Iterator[Cursor]:
    """Each global batch's start, from `start` to the end of epoch `num_epochs - 1`.

    `start.consumed` may be any count up to num_samples, reached with another global batch: the rest of that
    epoch is then cut into batches of the new size and nothing in it is repeated or skipped but the tail.
    """
    steps_per_epoch(num_samples, global_batch)
    if start.epoch < 0 or not 0 <= start.consumed <= num_samples:
        raise ValueError(
            f"{start} is outside a dataset of {num_samples} samples; was it saved with another dataset?"
        )
    return _walk(num_samples, global_batch, start, num_epochs)


def plan_eval(keys: NDArray[np.int64], global_batch: int) -> list[NDArray[np.int64]]:
    """Cut M keys into ceil(M / global_batch) rows of int64 [global_batch]; slots past the end hold -1."""
    if global_batch < 1:
        raise ValueError(f"global batch {global_batch} must be at least 1")
    num_batches = -(-len(keys) // global_batch)
    slots = np.full(num_batches * global_batch, -1, dtype=np.int64)
    slots[: len(keys)] = keys
    return list(slots.reshape(num_batches, global_batch))


def _walk(num_samples: int, global_batch: int, start: Cursor, num_epochs: int) -> Iterator[Cursor]:
    cursor = _settle(start, num_samples, global_batch)
    while cursor.epoch < num_epochs:
        yield cursor
        cursor = advance(cursor, num_samples, global_batch=global_batch)


def _settle(cursor: Cursor, num_samples: int, global_batch: int) -> Cursor:
    whole_batch_left = cursor.consumed + global_batch <= num_samples
    return cursor if whole_batch_left else Cursor(cursor.epoch + 1, 0)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> _SHIFT_1)) * _MUL_1
    z = (z ^ (z >> _SHIFT_2)) * _MUL_2
    return z ^ (z >> _SHIFT_3)


def _as_uint64(part: int | str | NDArray[np.integer]) -> NDArray[np.uint64]:
    if isinstance(part, str):
        return np.asarray(text_to_int(part.encode()), dtype=np.uint64)
    if isinstance(part, int):
        return np.asarray(part & _MASK, dtype=np.uint64)
    array = np.asarray(part)
    assert array.dtype.kind in "iu", f"hash64 takes integers, not {array.dtype}"
    return array.astype(np.uint64)
