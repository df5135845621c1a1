"""Repeated augmentation: which sample stands where, decoded once, and equal on every layout."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from data import repeat
from data.decode import Picture
from data.draws import MixSettings
from data.index import DatasetIndex
from data.loader import train_loader
from data.order import Cursor, permutation
from data.repeat import RepeatedOrder, SharedPictures
from data.shards import make
from data.transform import AugmentSettings
from data.window import FullOrder, WindowOrder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
NUM_SAMPLES = 37


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 12, 37, 60])
def test_positions(num_samples: int, repeats: int) -> None:
    order = RepeatedOrder(FullOrder([num_samples], seed=4), repeats=repeats, num_samples=num_samples)
    keys = order.keys(np.arange(num_samples), epoch=2)
    counts = Counter(keys.tolist())
    assert max(counts.values()) <= repeats
    whole = num_samples // (2 * repeats) * 2
    first = permutation(num_samples, seed=4, epoch=2)[:whole].tolist()
    assert all(counts[key] == repeats for key in first)  # and in the order's own order
    assert list(dict.fromkeys(keys.tolist()))[:whole] == first
    pairs = keys[: num_samples // 2 * 2].reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_copies_stand_close_together() -> None:
    order = RepeatedOrder(FullOrder([60], seed=0), repeats=3, num_samples=60)
    keys = order.keys(np.arange(6), epoch=0).tolist()
    a, b = keys[:2]
    assert keys == [a, b, a, b, a, b]


def test_one_copy_is_no_change() -> None:
    plain = FullOrder([37], seed=1)
    positions = np.array([5, 0, 36, 17])
    same = RepeatedOrder(plain, repeats=1, num_samples=37)
    assert np.array_equal(same.keys(positions, epoch=1), plain.keys(positions, epoch=1))


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("counts", [[5, 5, 5, 5], [1, 2, 3, 4, 5, 6], [7]])
def test_windows_hold_what_their_positions_need(counts: list[int], repeats: int) -> None:
    num_samples = sum(counts)
    order = RepeatedOrder(WindowOrder(counts, seed=3, window=2), repeats=repeats, num_samples=num_samples)
    shard_of = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(num_samples)
    shards = shard_of[order.keys(positions, epoch=1)]
    windows = order.windows(1)
    assert windows[0].first == 0
    assert windows[-1].last == num_samples
    for position, shard in zip(positions, shards, strict=True):
        assert any(w.first <= position < w.last and shard in w.shards for w in windows)


def test_no_copies_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats 0 must be at least 1"):
        RepeatedOrder(FullOrder([3], seed=0), repeats=0, num_samples=3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    root, random = tmp_path_factory.mktemp("repeat"), np.random.default_rng(0)
    for number in range(NUM_SAMPLES):
        folder = root / "tree" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (*random.integers(20, 40, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return make(root / "tree", root / "shards", split="train", samples_per_shard=10)


def batches(index: DatasetIndex, **options: object) -> list[tuple[Cursor, tuple[torch.Tensor, ...]]]:
    arguments = {
        "seed": 0, "global_batch": 12, "rank": 0, "world_size": 1, "start": Cursor(0, 0), "num_epochs": 2,
        "image_size": 16, "transform_of_epoch": [AugmentSettings()] * 2,
        "mix_of_epoch": [MixSettings(mixup_alpha=0.8)] * 2, "num_workers": 0, "repeats": 3, **options,
    }  # fmt: skip
    return list(train_loader(index, **arguments))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (3, 1), (6, 0)])
def test_layouts_give_identical_batches(
    index: DatasetIndex, world_size: int, num_workers: int, window: int | None
) -> None:
    """Also where a process has no whole block of copies (2 of 12 images each)."""
    expected = batches(index, window=window)
    assert len(expected) == 2 * (NUM_SAMPLES // 12)
    ranks = [
        batches(index, window=window, world_size=world_size, rank=rank, num_workers=num_workers)
        for rank in range(world_size)
    ]
    for (cursor, batch), *shares in zip(expected, *ranks, strict=True):
        assert {share[0] for share in shares} == {cursor}
        for field, parts in zip(batch, zip(*(share[1] for share in shares), strict=True), strict=True):
            assert torch.equal(torch.cat(parts), field)


def test_copies_are_cropped_anew_and_continue_after_a_stop(index: DatasetIndex) -> None:
    whole = batches(index)
    _, batch = whole[0]
    keys = batch[3].tolist()
    assert keys == [keys[0], keys[1]] * 3 + [keys[6], keys[7]] * 3
    assert len({image.numpy().tobytes() for image in batch[0]}) == 12
    rest = batches(index, start=whole[1][0])
    assert all(
        torch.equal(a, b)
        for (_, x), (_, y) in zip(whole[2:], rest, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_a_shared_picture_is_opened_and_decoded_once(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[int] = Counter()

    class Counting(Picture):
        def __init__(self, content: bytes, *, apply_exif: bool) -> None:
            super().__init__(content, apply_exif=apply_exif)
            opened[hash(content)] += 1

    monkeypatch.setattr(repeat, "Picture", Counting)
    batches(index, num_epochs=1, transform_of_epoch=[AugmentSettings()], mix_of_epoch=[MixSettings()])
    assert len(opened) == 12
    assert set(opened.values()) == {1}


def test_a_picture_is_kept_no_longer_than_needed() -> None:
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    reads: list[int] = []

    def read(key: int) -> bytes:
        reads.append(key)
        return file.getvalue()

    pictures = SharedPictures([7, 8, 7, 9, 7], read, apply_exif=False)
    taken = [pictures.take(key) for key in (7, 8, 7, 9, 7)]
    assert reads == [7, 8, 9]
    assert taken[0] is taken[2] is taken[4]
    assert not pictures._kept
