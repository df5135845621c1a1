"""Slots are free exactly when nobody can see them any more."""

import gc
import os

import numpy as np
import pytest
import torch

from data.slots import BatchShape, SharedBlock, Slots, arrays_in, as_batch, new_arrays, num_bytes

SHAPE = BatchShape(num_samples=5, image_size=7, num_draws=9)


def test_arrays_have_the_types_of_a_batch_and_do_not_overlap() -> None:
    memory = np.zeros(num_bytes(SHAPE), np.uint8)
    arrays = arrays_in(memory, SHAPE)
    for value, array in enumerate(arrays, start=1):
        array[:] = value
    for value, array in enumerate(arrays, start=1):
        assert (array == (True if array.dtype == bool else value)).all()
        assert (array.ctypes.data - memory.ctypes.data) % 64 == 0
    batch = as_batch(arrays)
    assert [(tuple(t.shape), t.dtype) for t in batch] == [
        ((5, 3, 7, 7), torch.uint8),
        ((5,), torch.int64),
        ((5,), torch.bool),
        ((5,), torch.int64),
        ((5,), torch.int64),
        ((5, 9), torch.float32),
    ]
    assert num_bytes(SHAPE) % 4096 == 0
    assert [a.shape for a in new_arrays(SHAPE)] == [a.shape for a in arrays]


def test_a_slot_is_free_when_the_last_view_is_gone() -> None:
    slots = Slots(SHAPE, 2, num_lent=2)
    slot = slots.take()
    slots.arrays(slot).image[:] = 3
    batch = slots.hand_out(slot)
    row = batch.image[2]
    assert row.data_ptr() == slots.arrays(slot).image[2].ctypes.data, "no copy"
    assert slots.take() != slot
    with pytest.raises(IndexError):
        slots.take()
    del batch
    with pytest.raises(IndexError):
        slots.take()
    assert (row == 3).all()
    del row
    assert slots.take() == slot


def test_whoever_keeps_more_gets_copies() -> None:
    slots = Slots(SHAPE, 3, num_lent=2)
    kept = []
    for value in range(8):
        slot = slots.take()
        slots.arrays(slot).key[:] = value
        kept.append(slots.hand_out(slot))
    assert [batch.key.tolist() for batch in kept] == [[value] * 5 for value in range(8)]
    del kept[0]
    found = slots.take()  # the third slot, or the first one again
    slots.arrays(found).key[:] = 99
    assert [batch.key[0].item() for batch in kept] == list(range(1, 8))


def test_batches_outlive_their_slots() -> None:
    slots = Slots(SHAPE, 1, num_lent=1)
    slot = slots.take()
    slots.arrays(slot).label[:] = 4
    batch = slots.hand_out(slot)
    del slots
    gc.collect()
    assert batch.label.tolist() == [4] * 5


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("has_memfd", [True, False])
def test_a_block_leaves_nothing_behind(has_memfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create")
    before = len(os.listdir("/proc/self/fd"))
    block = SharedBlock(10_000)
    array = block.array(4096, 4100)
    assert array.tolist() == [0] * 4
    array[:] = 7
    assert block.array(0, 10_000).sum() == 28
    del block, array
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
