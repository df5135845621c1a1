"""The order on layouts that would need too many processes: the same tasks, planned for every rank, dealt to workers
that each have their own copy of what they compute from, without pixels."""

import io
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.description import Description, Shard
from data.index import RECORD, DatasetIndex
from data.jobs import EvalBatches
from data.order import Cursor, advance, hash64, plan_eval, plan_train, sample_seed
from data.read import ShardReader
from data.repeat import RepeatedOrder
from data.slots import new_arrays
from data.store import LocalShards
from data.transform import EvalTransform
from data.window import FullOrder, SampleOrder, WindowOrder

NUM_SAMPLES = 1441
GLOBAL_BATCH = 720  # of as many ranks as divide it, see below; half the samples but one
SHARDS = (1, 2, 3, 5, 8, 16, 33, 64)
Keys = NDArray[np.int64]
_file = io.BytesIO()
Image.new("RGB", (1, 1)).save(_file, "PNG")
PIXEL = _file.getvalue()


def counts_of(num_shards: int, num_samples: int = NUM_SAMPLES) -> list[int]:
    """Shards of uneven sizes, one of them perhaps empty."""
    weights = hash64(num_shards, "sizes", np.arange(num_shards)) % np.uint64(10)
    cuts = np.floor(np.cumsum(weights + 0.01) / (weights + 0.01).sum() * num_samples).astype(int).tolist()
    cuts[-1] = num_samples
    return np.diff([0, *cuts]).tolist()


def make_order(kind: str, counts: Sequence[int]) -> SampleOrder:
    if kind == "full":
        return FullOrder(counts, seed=3)
    order: SampleOrder = WindowOrder(counts, seed=3, window=4)
    return RepeatedOrder(order, repeats=3, num_samples=sum(counts)) if kind == "repeated" else order


def global_batch_for(world_size: int) -> int:
    return GLOBAL_BATCH if GLOBAL_BATCH % world_size == 0 else 1001 + (world_size == 14) * 7


def batches_of_ranks(
    kind: str, counts: Sequence[int], *, world_size: int, num_workers: int, global_batch: int, num_epochs: int
) -> Iterator[tuple[Cursor, Keys]]:
    """Global batches put together from what each rank's workers make of the plan."""
    local = global_batch // world_size
    pools = [[make_order(kind, counts) for _ in range(max(num_workers, 1))] for _ in range(world_size)]
    plan = plan_train(sum(counts), global_batch, Cursor(0, 0), num_epochs)
    for number, cursor in enumerate(plan):
        shares = []
        for rank, workers in enumerate(pools):
            positions = cursor.consumed + rank * local + np.arange(local)
            shares.append(workers[number % len(workers)].keys(positions, epoch=cursor.epoch))
        yield cursor, np.concatenate(shares)


@pytest.mark.parametrize("world_size", range(1, 17))
@pytest.mark.parametrize("kind", ["full", "window"])
def test_ranks_workers_and_shards(kind: str, world_size: int) -> None:
    """Equal global batches for 0 to 8 workers; the full order does not even know the shards."""
    global_batch = global_batch_for(world_size)
    seen = set[bytes]()
    for num_shards in SHARDS:
        counts = counts_of(num_shards)
        reference = [make_order(kind, counts).keys(np.arange(NUM_SAMPLES), epoch=epoch) for epoch in range(2)]
        assert all(np.array_equal(np.sort(keys), np.arange(NUM_SAMPLES)) for keys in reference)
        seen.add(reference[0].tobytes())
        for num_workers in range(9):
            steps = list(
                batches_of_ranks(
                    kind, counts, world_size=world_size, num_workers=num_workers, global_batch=global_batch,
                    num_epochs=2,
                )
            )  # fmt: skip
            assert len(steps) == 2 * (NUM_SAMPLES // global_batch)
            for cursor, keys in steps:
                end = cursor.consumed + global_batch
                assert np.array_equal(keys, reference[cursor.epoch][cursor.consumed : end])
    assert len(seen) == (1 if kind == "full" else len(SHARDS) - 2), "up to four shards are one window"


@pytest.mark.parametrize("world_size", range(1, 17))
@pytest.mark.parametrize("num_samples", [1, 2, 47, 48, 49, NUM_SAMPLES])
def test_evaluation_has_each_key_once(num_samples: int, world_size: int) -> None:
    """One image, one less and one more than a global batch, on up to 16 ranks: as many batches on each."""
    global_batch = -(-48 // world_size) * world_size
    local = global_batch // world_size
    rows = plan_eval(np.arange(num_samples), global_batch)
    assert len(rows) == -(-num_samples // global_batch)
    shares = [row[rank * local : (rank + 1) * local] for rank in range(world_size) for row in rows]
    assert {len(share) for share in shares} == {local}
    together = np.concatenate(shares)
    assert np.array_equal(np.sort(together[together >= 0]), np.arange(num_samples))


def index_of(num_shards: int, num_samples: int) -> DatasetIndex:
    """An index of shards that are not there; labels count upwards from 7."""
    records = np.zeros(num_samples, RECORD)
    records["label"] = 7 + np.arange(num_samples)
    counts = counts_of(num_shards, num_samples)
    unknown = {"size": 1, "sha256": "", "index_sha256": "", "keys_sha256": ""}
    shards = [Shard(name=str(n), num_samples=count, **unknown) for n, count in enumerate(counts)]  # type: ignore[arg-type]
    description = Description(
        dataset="", split="", classes=(), num_samples=num_samples, key_hash="", shards=tuple(shards), created_by=""
    )  # fmt: skip
    parts = np.split(records, np.cumsum(counts)[:-1])
    return DatasetIndex(Path(), description, parts, store=LocalShards(Path()))


class OneImage(ShardReader):
    def read(self, key: int) -> bytes:
        return PIXEL


@pytest.mark.parametrize("world_size", range(1, 17))
@pytest.mark.parametrize("num_samples", [1, 49])
def test_evaluation_on_ranks_workers_and_shards(num_samples: int, world_size: int) -> None:
    """The jobs of all ranks, dealt to 0 to 8 workers, over 1 to 64 shards: each key once, with its label."""
    global_batch = -(-48 // world_size) * world_size
    local = global_batch // world_size
    rows = plan_eval(np.arange(num_samples), global_batch)
    resize = EvalTransform(mode="none")
    for num_shards, num_workers in product(SHARDS, range(9)):
        index = index_of(num_shards, num_samples)
        found: list[tuple[int, int]] = []
        for rank in range(world_size):
            workers = [
                EvalBatches(reader=OneImage(index), seed=0, local_batch=local, image_size=1, resize=resize)
                for _ in range(max(num_workers, 1))
            ]
            for number, row in enumerate(rows):
                worker = workers[number % len(workers)]
                into = new_arrays(worker.shape)
                assert worker.fill(row[rank * local : (rank + 1) * local], into, lambda key: None) == []
                found += zip(into.key[into.mask].tolist(), into.label[into.mask].tolist(), strict=True)
                assert (into.label[~into.mask] == -1).all()
        assert sorted(found) == [(key, 7 + key) for key in range(num_samples)]


@pytest.mark.parametrize(("num_samples", "global_batch"), [(1, 1), (49, 48), (48, 48), (95, 48)])
def test_small_epochs(num_samples: int, global_batch: int) -> None:
    """N=1 and N=GBS+1: whole batches alone, then the next epoch."""
    plan = list(plan_train(num_samples, global_batch, Cursor(0, 0), 3))
    assert plan == [Cursor(epoch, 0) for epoch in range(3)]
    assert advance(plan[-1], num_samples, global_batch=global_batch) == Cursor(3, 0)


@pytest.mark.parametrize("kind", ["full", "window", "repeated"])
@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_changes_its_layout_repeats_and_skips_nothing(kind: str, seed: int) -> None:
    """Killed at random steps and continued with another world size, number of workers and batch size, five times."""
    random = np.random.default_rng(seed)
    counts = counts_of(int(random.integers(1, 20)), 331)
    order, cursor = make_order(kind, counts), Cursor(0, 0)
    keys: dict[int, list[int]] = {0: [], 1: [], 2: []}
    seeds: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for part in range(6):
        global_batch = int(random.integers(1, 65))
        plan = plan_train(331, global_batch, cursor, 3)
        steps = 10**9 if part == 5 else int(random.integers(0, 9))
        order = make_order(kind, counts)  # a new process has computed nothing yet
        for _, start in zip(range(steps), plan, strict=False):
            positions = start.consumed + np.arange(global_batch)
            keys[start.epoch] += order.keys(positions, epoch=start.epoch).tolist()
            seeds[start.epoch] += sample_seed(positions, seed=0, epoch=start.epoch).tolist()
            cursor = advance(start, 331, global_batch=global_batch)
    for epoch in range(3):
        found = keys[epoch]
        assert found == order.keys(np.arange(len(found)), epoch=epoch).tolist()
        assert seeds[epoch] == sample_seed(np.arange(len(found)), seed=0, epoch=epoch).tolist()
        assert 331 - len(found) < 64, "an epoch loses its tail alone"
        assert len(seeds[epoch]) == len(set(seeds[epoch]))
