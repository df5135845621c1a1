"""A bad sample never makes a batch smaller or goes unsaid: another stands in for it, or the iteration ends."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.bad import MAX_TRIES, BadSample, CutShard, DataLimit, stand_ins
from data.batch import Batch
from data.decode import Picture
from data.draws import MixSettings
from data.index import DatasetIndex, load_index
from data.loader import eval_loader, train_loader
from data.order import Cursor, permutation, sample_seed
from data.read import ShardReader
from data.shards import make
from data.transform import AugmentSettings, EvalTransform, train_transform

NUM_SAMPLES, SIZE = 42, 8
ORDER = permutation(NUM_SAMPLES, seed=0, epoch=0)
AUGMENT = AugmentSettings()


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    """42 images of 42 colours in four shards."""
    for number in range(NUM_SAMPLES):
        folder = tmp_path / "tree" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((9, 11, 3), number * 6, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return make(tmp_path / "tree", tmp_path / "shards", split="train", samples_per_shard=11)


def damage(index: DatasetIndex, keys: Sequence[int]) -> None:
    for key in keys:
        shard, _ = index.locate(key)
        with (index.root / index.shards[shard].name).open("r+b") as file:
            file.seek(int(index.record(key)["offset"]) + 45)
            file.write(b"\xff\xff\xff")


def train(
    index: DatasetIndex,
    said: list[BadSample] | None,
    *,
    global_batch: int = 6,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    start: Cursor = Cursor(0, 0),  # noqa: B008
    num_epochs: int = 1,
) -> list[Batch]:
    batches = train_loader(
        index,
        seed=0,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        start=start,
        num_epochs=num_epochs,
        image_size=SIZE,
        transform_of_epoch=[AUGMENT] * num_epochs,
        mix_of_epoch=[MixSettings()] * num_epochs,
        num_workers=num_workers,
        on_bad=None if said is None else said.extend,
    )
    return [batch for _, batch in batches]


def column(batches: Sequence[Batch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def evaluate(index: DatasetIndex, said: list[BadSample] | None, num_workers: int = 0) -> list[Batch]:
    batches = eval_loader(
        index, keys=None, global_batch=10, rank=0, world_size=1, image_size=SIZE,
        resize=EvalTransform(mode="squash"), num_workers=num_workers, seed=0,
        on_bad=None if said is None else said.extend,
    )  # fmt: skip
    return list(batches)


def test_stand_ins_are_the_next_positions_and_then_those_before() -> None:
    assert list(stand_ins(3, 6)) == [4, 5, 2, 1, 0]
    assert list(stand_ins(5, 6)) == [4, 3, 2, 1, 0]
    assert list(stand_ins(0, 1)) == []
    far = list(stand_ins(10, 10_000))
    assert far == list(range(11, 11 + MAX_TRIES))
    near_end = list(stand_ins(9_990, 10_000))
    assert near_end[:10] == [*range(9_991, 10_000), 9_989]
    assert len(near_end) == len(set(near_end)) == MAX_TRIES


def test_the_next_in_order_stands_in_with_the_draws_of_the_place(index: DatasetIndex) -> None:
    """A single one, two in a row, the last one of the epoch, and the first."""
    places = [0, 7, 15, 16, NUM_SAMPLES - 1]
    damage(index, ORDER[places].tolist())
    said: list[BadSample] = []
    batches = train(index, said)
    wanted = ORDER.copy()
    for place, stand_in in [(0, 1), (7, 8), (15, 17), (16, 17), (NUM_SAMPLES - 1, NUM_SAMPLES - 2)]:
        wanted[place] = ORDER[stand_in]
    assert column(batches, "key").tolist() == wanted.tolist()
    assert column(batches, "label").tolist() == [index.label(key) for key in wanted.tolist()]
    assert column(batches, "mask").all()
    seeds = sample_seed(np.arange(NUM_SAMPLES), seed=0, epoch=0)
    assert column(batches, "seed").tolist() == seeds.tolist()
    image = train_transform(
        Picture(ShardReader(index).read(int(ORDER[17]))), AUGMENT, sample_seed=int(seeds[15]), image_size=SIZE
    )
    assert np.array_equal(column(batches, "image")[15].numpy(), image)
    # 16 is met as 15's first stand-in too.
    assert [sample.position for sample in said] == ORDER[[0, 7, 15, 16, 16, NUM_SAMPLES - 1]].tolist()
    assert {sample.key for sample in said} == {index.name(int(key)) for key in ORDER[places]}


@pytest.mark.parametrize(
    ("world_size", "num_workers", "global_batch"), [(1, 2, 6), (2, 0, 6), (3, 1, 6), (7, 0, 14)]
)
def test_every_layout_has_the_same_stand_ins(
    index: DatasetIndex, world_size: int, num_workers: int, global_batch: int
) -> None:
    damage(index, ORDER[[4, 5, 6, 20]].tolist())
    reference = column(train(index, []), "key")
    said: list[BadSample] = []
    ranks = [
        train(
            index, said, global_batch=global_batch, rank=rank, world_size=world_size, num_workers=num_workers
        )
        for rank in range(world_size)
    ]
    keys = torch.cat([batch.key for step in zip(*ranks, strict=True) for batch in step])
    assert torch.equal(keys, reference)
    assert {sample.position for sample in said} == set(ORDER[[4, 5, 6, 20]].tolist())


def test_a_restart_has_the_same_stand_ins(index: DatasetIndex) -> None:
    damage(index, ORDER[[11, 12, 13]].tolist())
    whole = train(index, [], num_epochs=2)
    rest = train(index, [], start=Cursor(0, 12), num_epochs=2)
    assert torch.equal(column(rest, "key"), column(whole, "key")[12:])
    assert torch.equal(column(rest, "image"), column(whole, "image")[12:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_told_before_their_batch(index: DatasetIndex, num_workers: int) -> None:
    damage(index, [int(ORDER[14])])
    said: list[BadSample] = []
    batches = train_loader(
        index, seed=0, global_batch=6, rank=0, world_size=1, start=Cursor(0, 0), num_epochs=1, image_size=SIZE,
        transform_of_epoch=[AUGMENT], mix_of_epoch=[MixSettings()], num_workers=num_workers, on_bad=said.extend,
    )  # fmt: skip
    counts = [len(said) for _ in batches]
    assert counts == [0, 0, 1, 1, 1, 1, 1]
    assert str(said[0]).startswith(f"bad sample {index.name(int(ORDER[14]))!r} in shard train-00000")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_that_is_lost_ends_the_run(index: DatasetIndex, num_workers: int) -> None:
    damage(index, range(NUM_SAMPLES))
    with pytest.raises(DataLimit, match=f"; {NUM_SAMPLES} samples in a row are bad") as caught:
        train(index, [], num_workers=num_workers)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_keeps_the_place_of_a_bad_sample(index: DatasetIndex, num_workers: int) -> None:
    clean = evaluate(index, None)
    damage(index, [0, 25, NUM_SAMPLES - 1])
    said: list[BadSample] = []
    found = evaluate(index, said, num_workers)
    assert [sample.position for sample in said] == [0, 25, NUM_SAMPLES - 1]
    for name in ("key", "label", "mask", "seed", "draw"):
        assert torch.equal(column(found, name), column(clean, name))
    good = [key for key in range(NUM_SAMPLES) if key not in (0, 25, NUM_SAMPLES - 1)]
    assert torch.equal(column(found, "image")[good], column(clean, "image")[good])
    assert (column(found, "image")[[0, 25, NUM_SAMPLES - 1]] == 0).all()
    with pytest.raises(BadSample, match="crc32"):
        evaluate(index, None, num_workers)


def test_a_shard_that_is_cut_in_use_ends_the_run(index: DatasetIndex) -> None:
    """That is no bad sample: all behind the cut are lost."""
    opened = load_index(index.root)
    path = opened.root / opened.shards[1].name
    with path.open("r+b") as file:
        file.truncate(int(opened.records(1)["offset"].max()) + 9)
    for num_workers in (0, 2):
        with pytest.raises(CutShard, match=r"shard train-000001\.tar was cut while it was in use: it ends"):
            train(opened, [], num_workers=num_workers)
    with pytest.raises(CutShard):
        evaluate(opened, [])


def test_a_bad_sample_travels() -> None:
    sample = pickle.loads(pickle.dumps(BadSample("why", shard="s", key="k", position=3)))
    assert (sample.reason, sample.shard, sample.key, sample.position) == ("why", "s", "k", 3)
    assert str(sample) == "bad sample 'k' in shard s: why"
