"""Memory that workers write batches into and the training process reads them from, in place.

One block without a name (memfd; where there is none, a temporary file that is unlinked at once) is mapped by all of
them and cut into slots of one batch each. A name in /dev/shm could stay behind after a kill -9, and containers
often give /dev/shm 64 MB; this goes when its last process does, and is limited by memory alone.
"""

import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from math import prod
from multiprocessing.reduction import DupFd
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.batch import Batch

_ALIGN: Final = 64  # bytes: where an array begins
_PAGE: Final = 4096  # where a slot begins


class BatchShape(NamedTuple):
    """What the size of a batch depends on."""

    num_samples: int  # N, of this process
    image_size: int
    num_draws: int  # columns of `draw`


class Arrays(NamedTuple):
    """The fields of `Batch`, of the same shapes and types, to write to."""

    image: NDArray[np.uint8]
    label: NDArray[np.int64]
    mask: NDArray[np.bool_]
    key: NDArray[np.int64]
    seed: NDArray[np.int64]
    draw: NDArray[np.float32]


def new_arrays(shape: BatchShape) -> Arrays:
    """Arrays of their own memory."""
    return arrays_in(np.empty(num_bytes(shape), np.uint8), shape)


def num_bytes(shape: BatchShape) -> int:
    """Of one slot."""
    *_, (offset, dtype, dims) = _places(shape)
    end = offset + dtype.itemsize * prod(dims)
    return -(-end // _PAGE) * _PAGE


def arrays_in(memory: NDArray[np.uint8], shape: BatchShape) -> Arrays:
    """The arrays of a batch in the uint8 [num_bytes] of a slot; they keep `memory` alive."""
    parts: list[Any] = []
    for offset, dtype, dims in _places(shape):
        parts.append(memory[offset : offset + dtype.itemsize * prod(dims)].view(dtype).reshape(dims))
    return Arrays(*parts)


def as_batch(arrays: Arrays) -> Batch:
    """Tensors of the same memory."""
    return Batch(*(torch.from_numpy(array) for array in arrays))


def _places(shape: BatchShape) -> list[tuple[int, np.dtype[Any], tuple[int, ...]]]:
    """(offset, type, shape) of each array."""
    n = (shape.num_samples,)
    fields: list[tuple[Any, tuple[int, ...]]] = [
        (np.uint8, (*n, 3, shape.image_size, shape.image_size)),
        (np.int64, n),
        (np.bool_, n),
        (np.int64, n),
        (np.int64, n),
        (np.float32, (*n, shape.num_draws)),
    ]
    places, offset = [], 0
    for kind, dims in fields:
        places.append((offset, np.dtype(kind), dims))
        offset += -(-np.dtype(kind).itemsize * prod(dims) // _ALIGN) * _ALIGN
    return places


class SharedBlock:
    """Bytes, zero at first, that a process and the children it starts see. Travels to a child at its start."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """`descriptor`: of a block that there is already; it is taken over."""
        self.size = size
        self._descriptor = _anonymous_file(size) if descriptor is None else descriptor
        self._mapping = mmap.mmap(self._descriptor, size)
        self._closer = weakref.finalize(self, os.close, self._descriptor)

    def array(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) as an array of its own object: who holds it, or a view of it, holds the mapping."""
        return np.frombuffer(self._mapping, np.uint8, stop - start, start)

    def __reduce__(self) -> tuple[Callable[..., "SharedBlock"], tuple[int, Any]]:
        return _reopen, (self.size, DupFd(self._descriptor))


def _reopen(size: int, descriptor: Any) -> SharedBlock:
    return SharedBlock(size, descriptor.detach())


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("batches", os.MFD_CLOEXEC)
    else:  # macOS
        descriptor, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(descriptor, size)
    return descriptor


class Slots:
    """Slots of a block, and which of them are free. Travels to workers, which see the arrays alone."""

    def __init__(self, shape: BatchShape, num_slots: int, *, num_lent: int) -> None:
        """`num_lent`: slots that may be in the hands of a consumer at a time; see `hand_out`."""
        self.shape, self.num_slots = shape, num_slots
        self.block = SharedBlock(num_bytes(shape) * num_slots)
        self._free = deque(range(num_slots))
        self._num_lent, self._lent = num_lent, set[int]()

    def take(self) -> int:
        """A free slot, which is none from now on."""
        return self._free.popleft()

    def arrays(self, slot: int) -> Arrays:
        return arrays_in(self._memory(slot), self.shape)

    def hand_out(self, slot: int) -> Batch:
        """The batch in a slot. The slot is free again when the last tensor (or view of one) of the batch is gone,
        so nothing is overwritten that is still used; a consumer that keeps more batches than `num_lent` gets
        copies instead of slots.
        """
        if len(self._lent) >= self._num_lent:
            batch = as_batch(arrays_in(self._memory(slot).copy(), self.shape))
            self._free.append(slot)
            return batch
        memory = self._memory(slot)  # all views of it have it for their base, and live no longer
        self._lent.add(slot)
        weakref.finalize(memory, self._return, slot).atexit = False  # type: ignore[misc]
        return as_batch(arrays_in(memory, self.shape))

    def _return(self, slot: int) -> None:
        self._lent.discard(slot)
        self._free.append(slot)

    def _memory(self, slot: int) -> NDArray[np.uint8]:
        size = num_bytes(self.shape)
        return self.block.array(slot * size, (slot + 1) * size)

    def __reduce__(self) -> tuple[Callable[..., "WorkerSlots"], tuple[BatchShape, SharedBlock]]:
        return WorkerSlots, (self.shape, self.block)


class WorkerSlots:
    """A worker's view of `Slots`."""

    def __init__(self, shape: BatchShape, block: SharedBlock) -> None:
        size = num_bytes(shape)
        self._arrays = [
            arrays_in(block.array(start, start + size), shape) for start in range(0, block.size, size)
        ]

    def arrays(self, slot: int) -> Arrays:
        return self._arrays[slot]
