"""The same global batches on every layout, exact continuation, exactly-once evaluation, and clear
refusals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.batch import LAM, MIX_ON, START, Batch
from data.decode import Picture
from data.draws import MixSettings, draw_train
from data.index import DatasetIndex
from data.loader import eval_loader, train_loader
from data.order import Cursor, permutation, sample_seed
from data.read import BadSample, ShardReader
from data.shards import make
from data.transform import AugmentSettings, EvalTransform, train_transform

# The suite asks for more workers than a small machine has cores; torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

NUM_SAMPLES, SIZE = 101, 8
AUGMENT = [AugmentSettings(randaug="rand-m9-mstd0.5-inc1", magnitude=float(epoch)) for epoch in range(3)]
MIX = [
    MixSettings(mixup_alpha=0.8),
    MixSettings(mixup_alpha=0.8, cutmix_alpha=1.0),
    MixSettings(cutmix_alpha=1.0, group=4),
]
PLAIN = [AugmentSettings()] * 3


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    root = tmp_path_factory.mktemp("loader")
    random = np.random.default_rng(0)
    for number in range(NUM_SAMPLES):
        folder = root / "tree" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        shape = (*random.integers(9, 15, 2), 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.jpg")
    return make(root / "tree", root / "shards", split="train", samples_per_shard=17)


def train(
    index: DatasetIndex,
    *,
    global_batch: int = 24,
    rank: int = 0,
    world_size: int = 1,
    start: Cursor = Cursor(0, 0),  # noqa: B008
    num_epochs: int = 3,
    num_workers: int = 0,
    seed: int = 0,
) -> Iterator[tuple[Cursor, Batch]]:
    return train_loader(
        index,
        seed=seed,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        start=start,
        num_epochs=num_epochs,
        image_size=SIZE,
        transform_of_epoch=AUGMENT[:num_epochs],
        mix_of_epoch=MIX[:num_epochs],
        num_workers=num_workers,
    )


def evaluate(
    index: DatasetIndex,
    *,
    keys: np.ndarray | None = None,
    global_batch: int = 24,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    return eval_loader(
        index,
        keys=keys,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        image_size=SIZE,
        resize=EvalTransform(),
        num_workers=num_workers,
        seed=0,
    )


def joined(shares: tuple[Batch, ...]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*shares, strict=True)))


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def expected(index: DatasetIndex) -> list[tuple[Cursor, Batch]]:
    return list(train(index))


def test_batches_are_what_the_parts_say(index: DatasetIndex, expected: list[tuple[Cursor, Batch]]) -> None:
    """One batch of epoch 1, put together by hand from order, read, decode, transform and draws."""
    cursor, batch = expected[4 + 2]
    assert cursor == Cursor(1, 72)
    positions = np.arange(48, 72)
    keys = permutation(NUM_SAMPLES, seed=0, epoch=1)[positions]
    seeds = sample_seed(positions, seed=0, epoch=1)
    reader = ShardReader(index)
    for slot, key in enumerate(keys.tolist()):
        image = Picture(reader.read(key))
        array = train_transform(image, AUGMENT[1], sample_seed=int(seeds[slot]), image_size=SIZE)
        assert np.array_equal(batch.image[slot].numpy(), array)
    assert batch.key.tolist() == keys.tolist()
    assert batch.seed.tolist() == seeds.tolist()
    assert batch.label.tolist() == [index.label(key) for key in keys]
    assert batch.mask.all()
    draws = draw_train(positions, MIX[1], seed=0, epoch=1, batch_start=48, image_size=SIZE)
    assert np.array_equal(batch.draw.numpy(), draws)


def test_shapes_and_types(expected: list[tuple[Cursor, Batch]]) -> None:
    batch = expected[0][1]
    assert [(tuple(t.shape), t.dtype) for t in batch] == [
        ((24, 3, SIZE, SIZE), torch.uint8),
        ((24,), torch.int64),
        ((24,), torch.bool),
        ((24,), torch.int64),
        ((24,), torch.int64),
        ((24, 8), torch.float32),
    ]
    assert (batch.draw[:, MIX_ON] == 1).all()
    assert len(set(batch.draw[:, START].tolist())) == 24


def test_an_epoch_holds_each_key_at_most_once(expected: list[tuple[Cursor, Batch]]) -> None:
    assert [cursor for cursor, _ in expected[:5]] == [
        Cursor(0, 24),
        Cursor(0, 48),
        Cursor(0, 72),
        Cursor(1, 0),
        Cursor(1, 24),
    ]
    assert len(expected) == 3 * (NUM_SAMPLES // 24)
    for epoch in range(3):
        keys = torch.cat([batch.key for _, batch in expected[4 * epoch : 4 * epoch + 4]])
        assert len(set(keys.tolist())) == 96
    assert not torch.equal(expected[0][1].key, expected[4][1].key)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_layouts_give_identical_batches(
    index: DatasetIndex, expected: list[tuple[Cursor, Batch]], world_size: int, num_workers: int
) -> None:
    ranks = [
        train(index, rank=rank, world_size=world_size, num_workers=num_workers) for rank in range(world_size)
    ]
    for (cursor, batch), shares in zip(expected, zip(*ranks, strict=True), strict=True):
        assert {share[0] for share in shares} == {cursor}
        assert equal(joined(tuple(share[1] for share in shares)), batch)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_eight_ranks_give_identical_batches(index: DatasetIndex, num_workers: int) -> None:
    one = list(train(index, global_batch=48, num_epochs=1))
    ranks = [
        train(index, global_batch=48, rank=rank, world_size=8, num_epochs=1, num_workers=num_workers)
        for rank in range(8)
    ]
    for (_, batch), shares in zip(one, zip(*ranks, strict=True), strict=True):
        assert equal(joined(tuple(share[1] for share in shares)), batch)


@pytest.mark.parametrize("stop", [1, 3, 4, 6, 11])
def test_continuing_on_another_layout_gives_the_same_batches(
    index: DatasetIndex, expected: list[tuple[Cursor, Batch]], stop: int
) -> None:
    start = expected[stop - 1][0]
    ranks = [train(index, rank=rank, world_size=2, start=start, num_workers=rank) for rank in range(2)]
    rest = list(zip(*ranks, strict=True))
    assert len(rest) == len(expected) - stop
    for (cursor, batch), shares in zip(expected[stop:], rest, strict=True):
        assert shares[0][0] == cursor
        assert equal(joined((shares[0][1], shares[1][1])), batch)


@pytest.mark.parametrize(("stop", "global_batch", "world_size"), [(1, 6, 3), (2, 32, 4), (3, 10, 1)])
def test_continuing_with_another_batch_repeats_and_skips_nothing(
    index: DatasetIndex, expected: list[tuple[Cursor, Batch]], stop: int, global_batch: int, world_size: int
) -> None:
    start = expected[stop - 1][0]
    ranks = [
        train(index, global_batch=global_batch, rank=rank, world_size=world_size, start=start, num_epochs=1)
        for rank in range(world_size)
    ]
    rest = [joined(tuple(share[1] for share in shares)) for shares in zip(*ranks, strict=True)]
    assert len(rest) == (NUM_SAMPLES - start.consumed) // global_batch
    before = [batch for _, batch in expected[:stop]]
    keys = torch.cat([batch.key for batch in [*before, *rest]])
    seeds = torch.cat([batch.seed for batch in [*before, *rest]])
    assert keys.tolist() == permutation(NUM_SAMPLES, seed=0, epoch=0)[: len(keys)].tolist()
    assert seeds.tolist() == sample_seed(np.arange(len(keys)), seed=0, epoch=0).tolist()


def test_the_seed_changes_everything(index: DatasetIndex, expected: list[tuple[Cursor, Batch]]) -> None:
    _, other = next(iter(train(index, seed=1)))
    first = expected[0][1]
    assert not torch.equal(other.key, first.key)
    assert other.draw[0, LAM] != first.draw[0, LAM]


def test_loading_leaves_the_global_generators_alone(index: DatasetIndex) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    next(iter(train(index, num_workers=1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_keys", [1, 24, 25, NUM_SAMPLES])
def test_eval_counts_each_key_once_on_any_number_of_ranks(index: DatasetIndex, num_keys: int) -> None:
    keys = permutation(NUM_SAMPLES, seed=9, epoch=0)[:num_keys]
    for world_size in range(1, 17):
        global_batch = -(-24 // world_size) * world_size
        ranks = [
            list(evaluate(index, keys=keys, global_batch=global_batch, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {-(-num_keys // global_batch)}
        every = joined(tuple(batch for batches in ranks for batch in batches))
        assert sorted(every.key[every.mask].tolist()) == sorted(keys.tolist())
        assert (every.key[~every.mask] == -1).all()
        assert (every.label[~every.mask] == -1).all()
        assert (every.image[~every.mask] == 0).all()
        assert (every.label[every.mask] >= 0).all()
        assert len({tuple(batch.image.shape) for batches in ranks for batch in batches}) == 1


@pytest.mark.parametrize("num_workers", [1, 3])
def test_eval_is_the_same_with_workers(index: DatasetIndex, num_workers: int) -> None:
    for first, second in zip(evaluate(index), evaluate(index, num_workers=num_workers), strict=True):
        assert equal(first, second)


@pytest.fixture(scope="module")
def shard_layouts(index: DatasetIndex, tmp_path_factory: pytest.TempPathFactory) -> list[DatasetIndex]:
    """The images of `index` in 6, 3 and 1 shards."""
    root, tree = tmp_path_factory.mktemp("layouts"), index.root.parent / "tree"
    others = [make(tree, root / str(n), split="train", samples_per_shard=n) for n in (50, NUM_SAMPLES)]
    assert [len(one.shards) for one in (index, *others)] == [6, 3, 1]
    return [index, *others]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_eval_of_every_layout_has_the_same_images_once(
    shard_layouts: list[DatasetIndex], world_size: int, num_workers: int
) -> None:
    """Ranks x workers x shards: N unique keys and the same bits, so the same accuracy to the last digit."""
    reference = {shard_layouts[0].name(k): (x, y) for k, x, y in unmasked(evaluate(shard_layouts[0]))}
    for index in shard_layouts:
        found = [
            entry
            for rank in range(world_size)
            for entry in unmasked(evaluate(index, rank=rank, world_size=world_size, num_workers=num_workers))
        ]
        assert len(found) == len({key for key, _, _ in found}) == NUM_SAMPLES
        assert {index.name(key): (image, label) for key, image, label in found} == reference


def unmasked(batches: Iterator[Batch]) -> list[tuple[int, bytes, int]]:
    """(key, pixels, label) of every sample that counts."""
    return [
        (int(batch.key[i]), batch.image[i].numpy().tobytes(), int(batch.label[i]))
        for batch in batches
        for i in range(len(batch.key))
        if batch.mask[i]
    ]


def test_eval_batch_content(index: DatasetIndex) -> None:
    batch = list(evaluate(index))[-1]
    assert batch.mask.sum() == NUM_SAMPLES % 24
    assert (batch.draw[:, LAM] == 1).all()
    assert (batch.draw[:, 1:] == 0).all()
    key = int(batch.key[0])
    image = EvalTransform().apply(Picture(ShardReader(index).read(key)), image_size=SIZE)
    assert np.array_equal(batch.image[0].numpy(), image)
    assert (
        batch.seed[batch.mask].tolist()
        == sample_seed(batch.key[batch.mask].numpy(), seed=0, epoch=0).tolist()
    )


def test_eval_of_nothing_yields_nothing(index: DatasetIndex) -> None:
    assert list(evaluate(index, keys=np.array([], dtype=np.int64))) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_sample_stops_with_shard_and_key_in_one_line(tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "tree" / "a" / f"{number}.png")
    index = make(tmp_path / "tree", tmp_path / "shards", split="train")
    with (tmp_path / "shards" / "train-000000.tar").open("r+b") as file:
        file.seek(int(index.record(5)["offset"]) + 45)
        file.write(b"\xff\xff\xff")
    for batches in (
        train(index, global_batch=8, num_epochs=1, num_workers=num_workers),
        evaluate(index, num_workers=num_workers),
    ):
        with pytest.raises(BadSample) as caught:
            list(batches)
        assert str(caught.value).startswith(f"bad sample {index.name(5)!r} in shard train-000000.tar: ")
        assert "\n" not in str(caught.value)
        assert caught.value.key == index.name(5)


def test_an_image_of_another_size_is_a_bad_sample_under_mode_none(index: DatasetIndex) -> None:
    batches = eval_loader(
        index, keys=None, global_batch=8, rank=0, world_size=1, image_size=SIZE,
        resize=EvalTransform(mode="none"), num_workers=0, seed=0,
    )  # fmt: skip
    with pytest.raises(BadSample, match=r"bad sample '\d/\d+' in shard train-000000.tar: the image is"):
        next(iter(batches))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"global_batch": 25, "world_size": 2}, "25 is not divisible by 2 processes; try 24 or 26"),
        ({"global_batch": 0}, "global batch 0"),
        ({"global_batch": 25}, "batch 25 per process is odd"),
        ({"global_batch": 12, "world_size": 4}, "batch 3 per process is odd"),
        ({"global_batch": 102}, "101 samples, fewer than one global batch of 102"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1"),
        ({"start": Cursor(0, 7)}, "saved with an odd batch"),
        ({"start": Cursor(0, 102)}, "outside a dataset of 101"),
        ({"num_workers": -1}, "-1 workers"),
    ],
)
def test_train_settings_are_refused_at_the_call(
    index: DatasetIndex, wrong: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        train(index, **wrong)


def test_epoch_lists_and_image_size_are_checked(index: DatasetIndex) -> None:
    def call(*, image_size: int, num_mix: int) -> None:
        train_loader(
            index, seed=0, global_batch=5, rank=0, world_size=1, start=Cursor(0, 0), num_epochs=3,
            num_workers=0, image_size=image_size, transform_of_epoch=PLAIN, mix_of_epoch=[MixSettings()] *
            num_mix, )  # fmt: skip

    call(image_size=8, num_mix=3)  # an odd batch is fine where nothing is mixed
    with pytest.raises(ValueError, match="mix_of_epoch has 2 entries for 3 epochs"):
        call(image_size=8, num_mix=2)
    with pytest.raises(ValueError, match="image size 0"):
        call(image_size=0, num_mix=3)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([0, 0], "given twice"),
        ([101], "reach outside"),
        ([-1], "reach outside"),
        ([[1]], "not a list"),
        ([0.5], "not a list"),
    ],
)
def test_eval_keys_are_checked(index: DatasetIndex, keys: list[object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        evaluate(index, keys=np.array(keys))
