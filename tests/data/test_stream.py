"""Tars without an index: read in order, strictly, with the same number of steps everywhere."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.batch import Batch
from data.draws import MixSettings
from data.index import DatasetIndex
from data.order import Cursor, sample_seed
from data.read import BadSample, ShardReader
from data.remote import RemoteError, Retry
from data.samples import expand_urls, read_samples
from data.stream import stream_loader
from data.tar import Writer, scan, stream
from data.transform import AugmentSettings

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

FAST = Retry(attempts=3, delay_s=0.01, timeout_s=5.0)
STEPS, BATCH = 3, 8


def train(urls: list[str], **changes: Any) -> Iterator[tuple[Cursor, Batch]]:
    settings: dict[str, Any] = {
        "num_classes": 3, "steps_per_epoch": STEPS, "seed": 0, "global_batch": BATCH, "rank": 0, "world_size": 1,
        "start": Cursor(0, 0), "num_epochs": 2, "image_size": 4, "num_workers": 0, "retry": FAST,
        "transform_of_epoch": [AugmentSettings()] * 2, "mix_of_epoch": [MixSettings(mixup_alpha=0.5)] * 2,
    }  # fmt: skip
    return stream_loader(urls, **settings | changes)


@pytest.fixture
def urls(dots: DatasetIndex, serve: Callable[[Path], Any]) -> list[str]:
    return [f"{serve(dots.root.parent).url}/train/train-{{000000..000020}}.tar"]


def one(path: Path) -> Path:
    """A shard to damage."""
    (path / "shards").mkdir()
    copy = path / "shards" / "train-000000.tar"
    with copy.open("wb") as file:
        writer = Writer(file)
        for number in range(6):
            writer.add(f"a/{number}.png", bytes(700 + number))
            writer.add(f"a/{number}.cls", b"1")
            writer.add(f"a/{number}.json", b"{}")
        writer.close()
    return copy


def test_samples_are_those_of_the_index(dots: DatasetIndex, serve: Callable[[Path], Any]) -> None:
    server, reader = serve(dots.root.parent), ShardReader(dots)
    server.fault = lambda name, number: "cut:4096"
    for shard, first in ((0, 0), (20, 100)):
        name = dots.shards[shard].name
        remote = list(read_samples(f"{server.url}/train/{name}", FAST))
        assert [(sample.name, sample.image, sample.label) for sample in remote] == [
            (dots.name(key), reader.read(key), dots.label(key)) for key in range(first, min(first + 5, 103))
        ]
        local = list(read_samples(str(dots.root / name), FAST))
        assert [sample[1:] for sample in local] == [sample[1:] for sample in remote]


@pytest.mark.parametrize("chunk", [1, 100, 512, 513, 10**6])
def test_a_stream_of_any_chunks_is_a_scan(tmp_path: Path, chunk: int) -> None:
    path = one(tmp_path)
    content = path.read_bytes()
    chunks = (content[start : start + chunk] for start in range(0, len(content), chunk))
    found = list(stream(chunks, "x.tar"))
    assert [member for member, _ in found] == list(scan(path))
    assert all(data == content[m.offset : m.offset + m.size] for m, data in found)


def test_every_cut_raises(tmp_path: Path) -> None:
    """At member borders, in headers, in data, in padding, in the end marker; but the last zeros may be missing."""
    content = one(tmp_path).read_bytes()
    end = max(member.offset + 512 for member in scan(tmp_path / "shards/train-000000.tar")) + 1024
    for size in [*range(0, end, 97), *range(0, end, 512), end - 1]:
        seen: list[bool] = []
        with pytest.raises(ValueError, match=r"shard x.tar.*(cut|damaged)"):
            seen.extend(m.size == len(data) for m, data in stream(iter([content[:size]]), "x.tar"))
        assert all(seen), "a member comes whole or not at all"
    assert len(list(stream(iter([content[:end]]), "x.tar"))) == 18


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["a.png", "b.png", "b.cls"], "key 'a' has no label"),
        (["a.png", "a.cls", "b.cls"], "key 'b' has no image beside it"),
        (["a.png", "b.png", "a.cls", "b.cls"], "key 'a' has no label"),
        (["a.png", "a.jpg", "a.cls"], "key 'a' has no label"),
        (["a.png", "a.cls", "a.png"], "appears twice"),
        (["../a.png", "../a.cls"], "leaves its folder"),
    ],
)
def test_samples_that_are_not_whole(tmp_path: Path, members: list[str], reason: str) -> None:
    with (tmp_path / "x.tar").open("wb") as file:
        writer = Writer(file)
        for name in members:
            writer.add(name, b"1")
        writer.close()
    with pytest.raises(ValueError, match=reason):
        list(read_samples(str(tmp_path / "x.tar"), FAST))


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="only plain files"):
        list(read_samples(str(tmp_path / "x.tar"), FAST))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (4, 0)])
def test_every_rank_takes_the_same_steps(urls: list[str], world_size: int, num_workers: int) -> None:
    expected = [Cursor(0, 8), Cursor(0, 16), Cursor(1, 0), Cursor(1, 8), Cursor(1, 16), Cursor(2, 0)]
    whole = [AugmentSettings(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)] * 2  # leaves the pixels alone
    ranks = [
        list(train(urls, rank=rank, world_size=world_size, num_workers=num_workers, transform_of_epoch=whole))
        for rank in range(world_size)
    ]
    images: set[bytes] = set()
    for batches in ranks:
        assert [cursor for cursor, _ in batches] == expected
        images.update(image.numpy().tobytes() for _, batch in batches[:STEPS] for image in batch.image)
    assert len(images) == STEPS * BATCH, "in an epoch shorter than the data set nothing comes twice"
    batch = ranks[0][1][1]
    positions = torch.arange(BATCH, BATCH + BATCH // world_size)
    assert batch.key.tolist() == positions.tolist()
    assert batch.seed.tolist() == sample_seed(positions.numpy(), seed=0, epoch=0).tolist()
    assert batch.mask.all()
    assert not torch.equal(ranks[0][0][1].image, ranks[0][STEPS][1].image), "another order in each epoch"


def test_it_is_repeatable_and_continues_at_a_step(urls: list[str]) -> None:
    first, second = list(train(urls)), list(train(urls))
    assert all(torch.equal(a.image, b.image) for (_, a), (_, b) in zip(first, second, strict=True))
    rest = list(train(urls, start=Cursor(0, 16)))
    assert [cursor for cursor, _ in rest] == [cursor for cursor, _ in first[2:]]
    assert torch.equal(rest[0][1].draw, first[2][1].draw)
    assert torch.equal(rest[1][1].image, first[3][1].image), "the next epoch is as it would have been"


def test_few_samples_come_again(dots: DatasetIndex) -> None:
    path = str(dots.root / dots.shards[0].name)
    batches = list(
        train([path], num_epochs=1, transform_of_epoch=[AugmentSettings()], mix_of_epoch=[MixSettings()])
    )
    labels = torch.cat([batch.label for _, batch in batches]).tolist()
    assert labels == (dots.labels()[:5].tolist() * 5)[:24]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_trouble_is_one_line(tmp_path: Path, dots: DatasetIndex, num_workers: int) -> None:
    good = [str(dots.root / shard.name) for shard in dots.shards[:2]]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(good[0]).read_bytes()[:1536])
    for urls, error, reason in (
        ([str(cut)] * 2, ValueError, r"shard .*cut.tar"),
        ([str(one(tmp_path))] * 2, BadSample, r"bad sample 'a/0' in shard .*train-000000.tar"),
        ([str(tmp_path / "none.tar")] * 2, FileNotFoundError, "none.tar"),
    ):
        with pytest.raises(error, match=reason) as caught:
            list(train(urls, num_workers=num_workers))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"label \d is outside 0\.\.0"):
        list(train(good, num_workers=num_workers, num_classes=1))


def test_a_missing_shard_is_an_error(urls: list[str], dots: DatasetIndex) -> None:
    url = urls[0].partition("{")[0] + "999999.tar"
    with pytest.raises(RemoteError, match=r"train-999999.tar: HTTP 404"):
        list(train([url]))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"world_size": 2, "rank": 1}, "1 shards cannot be dealt to 2 processes"),
        ({"steps_per_epoch": 0}, "0 steps per epoch"),
        ({"start": Cursor(0, 4)}, "is no step of 3 steps"),
        ({"global_batch": 7}, "batch 7 per process is odd"),
    ],
)
def test_settings_are_refused_at_the_call(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        train(["x.tar"], **wrong)


def test_pipes_only_where_allowed(dots: DatasetIndex) -> None:
    url = f"pipe:cat {dots.root / dots.shards[0].name}"
    with pytest.raises(ValueError, match="refused unless allowed"):
        train([url])
    assert len(list(train([url], allow_pipes=True))) == 2 * STEPS


def test_ranges_are_written_out() -> None:
    assert expand_urls(["a-{08..11}.tar", "b.tar"]) == (
        "a-08.tar",
        "a-09.tar",
        "a-10.tar",
        "a-11.tar",
        "b.tar",
    )
    assert expand_urls(["{0..1}/{0..1}"]) == ("0/0", "0/1", "1/0", "1/1")
