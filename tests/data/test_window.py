"""The window order: pure, complete, the same on every layout, and never more of it computed than asked for."""

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.batch import Batch
from data.cache import Cache
from data.draws import MixSettings
from data.index import DatasetIndex, load_index
from data.loader import eval_loader, train_loader, train_order
from data.lookahead import eval_needs, train_needs
from data.order import Cursor, permutation
from data.remote import Retry
from data.transform import AugmentSettings, EvalTransform
from data.window import FullOrder, WindowOrder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

COUNTS = (5,) * 20 + (3,)
NUM_SAMPLES = sum(COUNTS)
FAST = Retry(attempts=3, delay_s=0.01, timeout_s=5.0, wait_s=10.0)


def epoch_keys(order: WindowOrder | FullOrder, epoch: int) -> np.ndarray:
    return order.keys(np.arange(sum(order.counts)), epoch=epoch)


@pytest.mark.parametrize("window", [1, 2, 4, 20, 21, 100])
def test_each_epoch_holds_each_sample_once(window: int) -> None:
    order = WindowOrder(COUNTS, seed=3, window=window)
    for epoch in range(3):
        assert sorted(epoch_keys(order, epoch)) == list(range(NUM_SAMPLES))
        windows = order.windows(epoch)
        assert sorted(shard for one in windows for shard in one.shards) == list(range(21))
        assert all(len(one.shards) == window for one in windows[:-1])
        assert windows[0].first == 0
        assert all(a.last == b.first for a, b in pairwise(windows))
        assert windows[-1].last == NUM_SAMPLES


def test_samples_stay_in_their_window() -> None:
    order = WindowOrder(COUNTS, seed=0, window=4)
    keys = epoch_keys(order, 1)
    for first, last, shards in order.windows(1):
        assert set(keys[first:last] // 5) == set(shards)


def test_one_window_over_everything_is_the_full_permutation() -> None:
    for window in (21, 1000):
        order = WindowOrder(COUNTS, seed=7, window=window)
        assert np.array_equal(epoch_keys(order, 2), permutation(NUM_SAMPLES, seed=7, epoch=2))
    assert np.array_equal(epoch_keys(FullOrder(COUNTS, seed=7), 2), permutation(NUM_SAMPLES, seed=7, epoch=2))


def test_pure_in_seed_and_epoch() -> None:
    """Any place at any time, in any process: no state but what is recomputed."""
    order = WindowOrder(COUNTS, seed=5, window=3)
    whole = {epoch: epoch_keys(order, epoch) for epoch in range(4)}
    random = np.random.default_rng(0)
    for _ in range(50):
        epoch, positions = int(random.integers(4)), random.integers(0, NUM_SAMPLES, 7)
        assert np.array_equal(order.keys(positions, epoch=epoch), whole[epoch][positions])
    fresh = pickle.loads(pickle.dumps(WindowOrder(COUNTS, seed=5, window=3)))
    assert np.array_equal(epoch_keys(fresh, 3), whole[3])
    assert not np.array_equal(whole[0], whole[1])
    assert order.windows(0)[0].shards != order.windows(1)[0].shards
    assert not np.array_equal(epoch_keys(WindowOrder(COUNTS, seed=6, window=3), 0), whole[0])


def test_golden() -> None:
    """The order is part of the data format."""
    order = WindowOrder((3, 1, 4, 2), seed=1, window=2)
    assert [one.shards for one in order.windows(0)] == [(1, 0), (2, 3)]
    assert epoch_keys(order, 0).tolist() == [1, 0, 3, 2, 6, 9, 5, 7, 8, 4]


def test_only_the_windows_asked_for_are_computed() -> None:
    order = WindowOrder((1000,) * 1281, seed=0, window=64)
    order.keys(np.arange(640_000, 640_512), epoch=0)
    assert set(order._keys) == {(0, 10)}
    assert len(pickle.dumps(order)) < 1_500_000
    assert order.quality == pytest.approx(64 / 1281)
    assert WindowOrder(COUNTS, seed=0, window=99).quality == 1.0


def test_needs_follow_the_cursor() -> None:
    order = WindowOrder(COUNTS, seed=2, window=4)
    needs = list(train_needs(order, Cursor(1, 30), num_samples=NUM_SAMPLES, num_epochs=3))
    assert needs[0].first <= NUM_SAMPLES + 30 < needs[0].last
    assert all(a.last == b.first for a, b in pairwise(needs))
    assert needs[-1].last == 3 * NUM_SAMPLES


def test_eval_needs_cover_the_keys(dots: DatasetIndex) -> None:
    keys = permutation(NUM_SAMPLES, seed=0, epoch=0)[:40]
    needs = list(eval_needs(dots, keys))
    assert [need.first for need in needs] == sorted(need.first for need in needs)
    for position, key in enumerate(keys.tolist()):
        holding = [need for need in needs if need.shards == (key // 5,)]
        assert len(holding) == 1
        assert holding[0].first <= position < holding[0].last


def train(index: DatasetIndex, **changes: Any) -> list[tuple[Cursor, Batch]]:
    settings: dict[str, Any] = {
        "seed": 0, "global_batch": 8, "rank": 0, "world_size": 1, "start": Cursor(0, 0), "num_epochs": 2,
        "image_size": 4, "num_workers": 0, "window": 4,
        "transform_of_epoch": [AugmentSettings()] * 2, "mix_of_epoch": [MixSettings(mixup_alpha=0.5)] * 2,
    }  # fmt: skip
    return list(train_loader(index, **settings | changes))


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def joined(shares: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*shares, strict=True)))


@pytest.fixture(scope="module")
def expected(dots: DatasetIndex) -> list[tuple[Cursor, Batch]]:
    return train(dots)


def test_the_loader_follows_the_order(dots: DatasetIndex, expected: list[tuple[Cursor, Batch]]) -> None:
    order = train_order(dots, seed=0, window=4)
    keys = torch.cat([batch.key for cursor, batch in expected[12:]])
    assert keys.tolist() == order.keys(np.arange(96), epoch=1).tolist()


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (4, 0), (2, 1)])
def test_layouts_give_identical_batches(
    dots: DatasetIndex, expected: list[tuple[Cursor, Batch]], world_size: int, num_workers: int
) -> None:
    ranks = [train(dots, rank=r, world_size=world_size, num_workers=num_workers) for r in range(world_size)]
    for (cursor, batch), shares in zip(expected, zip(*ranks, strict=True), strict=True):
        assert {share[0] for share in shares} == {cursor}
        assert equal(joined([share[1] for share in shares]), batch)


@pytest.mark.parametrize("stop", [1, 5, 12, 17])
def test_continuing_is_exact(dots: DatasetIndex, expected: list[tuple[Cursor, Batch]], stop: int) -> None:
    ranks = [train(dots, rank=rank, world_size=2, start=expected[stop - 1][0]) for rank in range(2)]
    rest = [joined([share[1] for share in shares]) for shares in zip(*ranks, strict=True)]
    assert len(rest) == len(expected) - stop
    assert all(equal(a, b) for a, (_, b) in zip(rest, expected[stop:], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_shards_give_the_local_batches(
    dots: DatasetIndex,
    expected: list[tuple[Cursor, Batch]],
    serve: Callable[[Path], Any],
    tmp_path: Path,
    num_workers: int,
) -> None:
    server = serve(dots.root.parent)
    server.fault = lambda name, number: ("503", "cut:3000", "")[number % 3]
    index = load_index(f"{server.url}/train", cache=Cache.default(tmp_path), retry=FAST)
    server.fault = lambda name, number: ""
    found = train(index, num_workers=num_workers)
    assert all(a[0] == b[0] and equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))
    counts = [len(server.requests(shard.name)) for shard in index.shards]
    assert counts == [1] * 21, "workers and look-ahead together fetch each shard once"
    batches = eval_loader(
        index, keys=None, global_batch=8, rank=0, world_size=1, image_size=4, resize=EvalTransform(mode="none"),
        num_workers=num_workers, seed=0,
    )  # fmt: skip
    assert sum(int(batch.mask.sum()) for batch in batches) == NUM_SAMPLES
    assert not list((tmp_path / "leases").glob("*.lease"))


def test_windows_that_cannot_be(dots: DatasetIndex, serve: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window 0 must be at least 1 shard"):
        train(dots, window=0)
    server, size = serve(dots.root.parent), max(shard.size for shard in dots.shards)
    cache = Cache.default(tmp_path, max_bytes=4 * size)
    index = load_index(f"{server.url}/train", cache=cache, retry=FAST)
    with pytest.raises(
        ValueError, match=rf"limit of {4 * size} bytes cannot hold .* 6 shards .*lower the window"
    ):
        train(index, window=3)
    with pytest.raises(ValueError, match="21 shards"):
        train(index, window=None)
    found, local = train(index, window=2), train(dots, window=2)
    assert all(equal(a, b) for (_, a), (_, b) in zip(found, local, strict=True))
    assert sum(path.stat().st_size for path in (tmp_path / "shards").iterdir()) <= 4 * size
