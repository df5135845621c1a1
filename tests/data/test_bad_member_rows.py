"""Members that are no images, and shards that are few or others: rows of the list in test_bad_structure_rows."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.bad import BadSample, DataLimit
from data.index import DatasetIndex, load_index
from data.loader import eval_loader
from data.shards import index_existing, verify
from data.tar import BLOCK
from data.transform import EvalTransform
from tests.data.bad_rows import good, is_whole, read, refuse_build, shards
from tests.data.trees import encode, write_tar

# ---- what else a tar can hold


def pax(*records: bytes) -> bytes:
    """A tar of one pax header with these records, and one image behind it."""
    body = b"".join(records)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    image = tarfile.TarInfo("a.jpg")
    blocks = [
        header.tobuf(tarfile.USTAR_FORMAT),
        body + bytes(-len(body) % BLOCK),
        image.tobuf(tarfile.USTAR_FORMAT),
    ]
    return b"".join(blocks) + bytes(2 * BLOCK)


@pytest.mark.parametrize(
    "records",
    [
        b"12 size=999\n",
        b"16 linkpath=/x\n",
        b"22 GNU.sparse.major=1\n",
        b"0 mtime=1\nxx",
        b"3 mtime=1\nxx",
        b"-9 mtime=1\n",
        b"99 mtime=1\n",
        b"9" * 5000 + b" mtime=1\n",
    ],
)
def test_pax_tricks(tmp_path: Path, records: bytes) -> None:
    """Lengths that lie must neither hang nor crash the scanner."""
    (tmp_path / "t-0.tar").write_bytes(pax(records))
    refuse_build(tmp_path, r"shard t-0\.tar, byte \d+: a pax header (that cannot be read|sets)")


@pytest.mark.parametrize("kind", [b"S", b"1", b"2", b"3", b"4", b"6", b"V"])
def test_links_devices_and_sparse_files(tmp_path: Path, kind: bytes) -> None:
    write_tar(tmp_path / "t-0.tar", good(2))
    raw = (tmp_path / "t-0.tar").read_bytes()
    special = tarfile.TarInfo("b.jpg")
    special.type, special.linkname = kind, "000.jpg"
    (tmp_path / "t-0.tar").write_bytes(special.tobuf(tarfile.USTAR_FORMAT) + raw)
    refuse_build(tmp_path, r"shard t-0\.tar, byte 0: member 'b\.jpg' is of type .* only plain files")


def test_member_above_the_limit(tmp_path: Path) -> None:
    """300 MB of nothing, in a hole of the file: nobody reads it into memory."""
    size = 300_000_000
    huge, label = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("a.cls")
    huge.size = size
    with (tmp_path / "t-0.tar").open("wb") as file:
        file.write(huge.tobuf(tarfile.USTAR_FORMAT))
        file.seek(size + -size % BLOCK, 1)
        file.write(label.tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK))
    with pytest.raises(ValueError, match=r"shard t-0\.tar, key 'a': the image member has 300000000 bytes"):
        index_existing(tmp_path)


class Trap:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists(), "the trap works"
    sprung.unlink()
    folder = tmp_path / "shards"
    folder.mkdir()
    members = good(8)
    for kind in ("pyd", "pickle", "pkl", "pth", "pt", "npy", "pyc", "py"):
        members |= {f"{number:03d}.{kind}": trap for number in range(8)}
    write_tar(folder / "t-0.tar", members)
    index = index_existing(folder, num_workers=2)
    assert verify(folder, full=True, decode=True, num_workers=2).ok
    for kind, num_workers in (("train", 0), ("train", 2), ("eval", 0), ("eval", 2)):
        assert is_whole(index, read(index, kind, num_workers))
    for path in (folder / "t-0.tar.idx.npy", folder / "t-0.tar.keys.npy"):
        whole = path.read_bytes()
        path.unlink()  # others have it mapped
        np.save(path, np.array([Trap(sprung)] * 8, dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
            load_index(folder).name(0)
        assert verify(folder, full=True).problems
        path.write_bytes(whole)
    for name in ("a.jpg", "a.cls", "a.json"):  # under the names that are opened
        write_tar(folder / "t-0.tar", {"a.jpg": encode(0), "a.json": b'{"label": 0}'} | {name: trap})
        with pytest.raises(ValueError, match="key 'a'"):
            index_existing(folder)
    assert not sprung.exists()


# ---- few, and others


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize(
    ("count", "world_size", "global_batch"), [(1, 4, 8), (9, 4, 8), (3, 3, 3), (5, 2, 64)]
)
def test_fewer_than_there_are_readers(
    tmp_path: Path, count: int, world_size: int, global_batch: int, num_workers: int
) -> None:
    """One shard and a few samples for many ranks, workers, or one large batch."""
    index = shards(tmp_path, count=count, per_shard=count)
    ranks = [
        list(
            eval_loader(
                index, keys=None, global_batch=global_batch, rank=rank, world_size=world_size, image_size=16,
                resize=EvalTransform(mode="none"), num_workers=num_workers, seed=0,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip
    assert {len(batches) for batches in ranks} == {-(-count // global_batch)}, "nobody waits for anybody"
    assert is_whole(index, [batch for batches in ranks for batch in batches])


def test_fewer_than_a_batch_to_train_on(tmp_path: Path) -> None:
    index = shards(tmp_path, count=3, per_shard=3)
    with pytest.raises(ValueError, match=r"3 .*4"):
        read(index, "train", 0)


def others(tmp_path: Path) -> DatasetIndex:
    """Shards with an index; then the same names, classes and sizes with other images."""
    members = {
        name: data.ljust(900, b"\0") if name.endswith("jpg") else data for name, data in good(12).items()
    }
    write_tar(tmp_path / "t-0.tar", members)
    index = index_existing(tmp_path)
    images = [encode(500 + number, size=(16, 16)).ljust(900, b"\0") for number in range(12)]
    replaced = {name: images.pop() if name.endswith("jpg") else data for name, data in members.items()}
    write_tar(tmp_path / "t-0.tar", replaced)
    assert (tmp_path / "t-0.tar").stat().st_size == index.shards[0].size
    return index


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shard_replaced_under_its_name(tmp_path: Path, num_workers: int) -> None:
    before = others(tmp_path)
    assert "shard t-0.tar: sha256 differs from the index" in verify(tmp_path, full=True).problems
    same = load_index(tmp_path)
    with pytest.raises(DataLimit, match="12 samples in a row are bad"):
        read(same, "train", num_workers, lambda bad: None)
    with pytest.raises(BadSample, match="differ from the indexed ones"):
        read(same, "eval", num_workers)
    again = index_existing(tmp_path)
    assert again.dataset_id != before.dataset_id, "a run that goes on compares it"
    if num_workers:
        with pytest.raises(ValueError, match="the index changed while it was in use"):
            read(before, "train", num_workers)
