"""The order is a format: golden values, and the plan's promises for any layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import (
    Cursor,
    advance,
    hash64,
    permutation,
    plan_eval,
    plan_train,
    sample_seed,
    steps_per_epoch,
    text_to_int,
    uniform,
)

MASK = (1 << 64) - 1
GOLDEN_INTEGERS = [258863698125685209, 15979313559291895140, 4815193057359064352, 8374052749663755816]
GOLDEN_STRINGS = [12497301044270508996, 3052941300755013203, 4719769241070308919]
GOLDEN_ORDER = [1, 9, 6, 7, 3, 2, 0, 8, 5, 4]
GOLDEN_NEXT_ORDER = [0, 2, 5, 9, 8, 4, 7, 1, 6, 3]
GOLDEN_SEEDS = [-163982932010094002, -3264427201323943210, -7545343379697401006]


def slow_hash(*parts: int) -> int:
    """hash64 in plain integers, written from its docstring."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    hashed = 0x9E3779B97F4A7C15
    for part in parts:
        hashed = mix(hashed ^ mix((part + 0x9E3779B97F4A7C15) & MASK))
    return hashed


def test_hash_golden_values() -> None:
    """Changing one of these changes every published order; never regenerate them."""
    assert [int(hash64(0)), int(hash64(1)), int(hash64(-1)), int(hash64(0, 0))] == GOLDEN_INTEGERS
    assert [int(hash64("order")), int(hash64("sample")), int(hash64(7, "mix", 3))] == GOLDEN_STRINGS


def test_permutation_golden_values() -> None:
    assert permutation(10, seed=0, epoch=0).tolist() == GOLDEN_ORDER
    assert permutation(10, seed=0, epoch=1).tolist() == GOLDEN_NEXT_ORDER


def test_sample_seed_golden_values() -> None:
    assert sample_seed(np.array([0, 1, 2**40]), seed=5, epoch=2).tolist() == GOLDEN_SEEDS


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_hash_equals_plain_integer_arithmetic(parts: list[int]) -> None:
    assert int(hash64(*parts)) == slow_hash(*parts)


def test_hash_of_arrays_equals_hash_of_each() -> None:
    values = np.array([-3, 0, 9, 2**62])
    assert hash64(1, "x", values).tolist() == [int(hash64(1, "x", int(value))) for value in values]
    assert int(hash64("order")) == int(hash64(text_to_int(b"order")))


def test_hash_depends_on_the_order_of_parts() -> None:
    assert int(hash64(1, 2)) != int(hash64(2, 1))
    assert int(hash64(0)) != int(hash64(0, 0))


def test_hash_flips_half_of_the_bits() -> None:
    values = np.arange(2000)
    for bit in (0, 1, 31, 62):
        changed = hash64(values) ^ hash64(values ^ (1 << bit))
        flipped = np.unpackbits(changed.view(np.uint8)).mean()
        assert abs(flipped - 0.5) < 0.005  # 128,000 bits: standard deviation 0.0014


def test_uniform_stays_inside() -> None:
    edges = uniform(np.array([0, MASK], dtype=np.uint64))
    assert edges[0] > 0
    assert edges[1] < 1


@pytest.mark.parametrize("num_samples", [0, 1, 2, 1000, 4097])
def test_permutation_is_a_permutation(num_samples: int) -> None:
    order = permutation(num_samples, seed=3, epoch=4)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


def test_permutation_depends_on_seed_and_epoch() -> None:
    base = permutation(1000, seed=0, epoch=0)
    for other in (permutation(1000, seed=1, epoch=0), permutation(1000, seed=0, epoch=1)):
        assert (base == other).sum() < 10  # one place agrees on average


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12), st.integers(0, 20))
def test_resume_with_another_batch_repeats_and_skips_nothing(
    num_samples: int, first: int, second: int, stop_after: int
) -> None:
    first, second = min(first, num_samples), min(second, num_samples)
    starts = list(plan_train(num_samples, first, Cursor(0, 0), 2))
    stop = min(stop_after, len(starts) - 1)
    resumed = list(plan_train(num_samples, second, starts[stop], 2))
    positions = [start.consumed + i for start in starts[:stop] if start.epoch == 0 for i in range(first)]
    positions += [start.consumed + i for start in resumed if start.epoch == 0 for i in range(second)]
    if starts[stop].epoch == 0:
        assert positions == list(range(len(positions)))
        assert num_samples - len(positions) < max(second, 1)
    assert sum(start.epoch == 1 for start in resumed) >= (
        num_samples // second if starts[stop].epoch == 0 else 0
    )


def test_plan_drops_the_tail_and_goes_on() -> None:
    plan = list(plan_train(10, 4, Cursor(0, 0), 2))
    assert plan == [Cursor(0, 0), Cursor(0, 4), Cursor(1, 0), Cursor(1, 4)]
    assert advance(Cursor(0, 4), 10, global_batch=4) == Cursor(1, 0)
    assert list(plan_train(10, 4, Cursor(2, 0), 2)) == []
    assert steps_per_epoch(10, 4) == 2


def test_plan_refuses_a_dataset_smaller_than_a_batch() -> None:
    with pytest.raises(ValueError, match="10 samples, fewer than one global batch of 11"):
        plan_train(10, 11, Cursor(0, 0), 1)


@pytest.mark.parametrize("start", [Cursor(-1, 0), Cursor(0, -2), Cursor(0, 11)])
def test_plan_refuses_a_cursor_of_another_dataset(start: Cursor) -> None:
    with pytest.raises(ValueError, match="outside a dataset of 10 samples"):
        plan_train(10, 2, start, 1)


@pytest.mark.parametrize("num_keys", [0, 1, 7, 8, 9, 50])
def test_eval_plan_holds_each_key_once(num_keys: int) -> None:
    keys = np.arange(num_keys, dtype=np.int64) * 3
    rows = plan_eval(keys, 8)
    assert len(rows) == -(-num_keys // 8)
    assert all(row.shape == (8,) and row.dtype == np.int64 for row in rows)
    slots = np.concatenate([*rows, np.empty(0, np.int64)])
    assert slots[slots >= 0].tolist() == keys.tolist()
