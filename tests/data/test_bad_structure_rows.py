"""Damaged structure stops, at the place where it is met: when the index is made, at `shards verify`, when it is loaded.

One test for each row of the list of bad inputs that is about shards; rows that other tests cover in full are

| input | made | verified | loaded |
|---|---|---|---|
| cut shard | test_tar (cuts), test_existing::test_a_missing_end_is_allowed_on_demand | here | here; while it is in use:
  test_bad_samples::test_a_shard_that_is_cut_in_use_ends_the_run |
| image without label, label without image | test_shards::test_index_existing_refuses | (no index) | (no index) |
| path traversal | test_tar, test_existing::test_everything_a_tar_can_be_instead | (no index) | test_index |
| pipe: | test_remote::test_pipes_only_where_allowed, test_stream::test_pipes_only_where_allowed | | |
| shard replaced between runs | | here | here; engine: test_bad_input::test_resume_with_other_data_at_the_same_path |
| network, disk, kill -9, rivals | | | test_remote, test_download, test_cache, test_lock |
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.bad import BadSample
from data.cache import Cache
from data.description import Description, save_index
from data.index import load_index
from data.records import describe_shard
from data.remote import RemoteError, Retry
from data.shards import index_existing, verify
from data.tar import BLOCK
from data.verify import key_hash
from tests.data.bad_rows import agree, column, every_reader, good, is_whole, read, refuse_build, shards
from tests.data.trees import encode, write_tar

FAST = Retry(attempts=2, delay_s=0.01, max_delay_s=0.02, timeout_s=2.0, wait_s=5.0)


def last_member(path: Path) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmembers()[-2]  # the last image; its label follows


# ---- cut and damaged tars


@pytest.mark.parametrize("where", ["inside data", "at a member", "inside a header"])
def test_cut_tar(tmp_path: Path, where: str) -> None:
    index = shards(tmp_path)
    path = tmp_path / "t-1.tar"
    last = last_member(path)
    end = {
        "inside data": last.offset_data + 9,
        "at a member": last.offset,
        "inside a header": last.offset + 99,
    }
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(end[where])
    refuse_build(tmp_path, r"shard t-1\.tar, byte \d+: .*it was cut")
    says = rf"shard t-1\.tar has {end[where]} bytes but the index says {whole}; fetch it again"
    with pytest.raises(ValueError, match=says):
        load_index(index.root)
    for full in (True, False):
        found = verify(tmp_path, full=full).problems
        assert f"shard t-1.tar: {end[where]} bytes, the index says {whole}" in found


def test_damaged_header(tmp_path: Path) -> None:
    """tarfile would take it for the end. The index needs no header: every sample is still there."""
    index = shards(tmp_path)
    path = tmp_path / "t-1.tar"
    raw = bytearray(path.read_bytes())
    raw[last_member(path).offset + 130] ^= 1  # in the size field
    path.write_bytes(raw)
    found = verify(tmp_path, full=True).problems
    assert found[0] == "shard t-1.tar: sha256 differs from the index"
    assert "byte" in found[1]
    assert "the header's checksum is wrong" in found[1]
    for kind, workers in (("train", 0), ("eval", 2)):
        assert is_whole(index, read(load_index(tmp_path), kind, workers))
    refuse_build(tmp_path, r"shard t-1\.tar, byte \d+: the header's checksum is wrong")


def test_end_of_archive_missing(tmp_path: Path) -> None:
    path = tmp_path / "t-0.tar"
    write_tar(path, good(5))
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + BLOCK
    with path.open("r+b") as file:
        file.truncate(end)
    refuse_build(tmp_path, r"shard t-0\.tar, byte \d+: the file ends without the end-of-archive marker")
    index = index_existing(tmp_path, allow_no_end=True)
    assert verify(tmp_path, full=True).ok
    assert is_whole(index, read(index, "eval", 0))
    with path.open("r+b") as file:  # from now on the size guards
        file.truncate(end - BLOCK)
    with pytest.raises(ValueError, match=rf"has {end - BLOCK} bytes but the index says {end}"):
        load_index(tmp_path)


@pytest.mark.parametrize("instead", [b"", b"<html>404 Not Found</html>" * 30])
def test_zero_bytes_or_a_page(tmp_path: Path, instead: bytes) -> None:
    shards(tmp_path)
    (tmp_path / "t-2.tar").write_bytes(instead)
    refuse_build(tmp_path, r"shard t-2\.tar, byte 0: ")
    with pytest.raises(ValueError, match=rf"shard t-2\.tar has {len(instead)} bytes but the index says"):
        load_index(tmp_path)
    assert f"shard t-2.tar: {len(instead)} bytes, the index says" in verify(tmp_path, full=False).problems[0]


def test_missing_shard(tmp_path: Path) -> None:
    shards(tmp_path)
    opened = load_index(tmp_path)
    (tmp_path / "t-2.tar").unlink()
    assert verify(tmp_path, full=True).problems == ("shard t-2.tar: missing",)
    with pytest.raises(FileNotFoundError, match=r"shard t-2\.tar is missing from .*; copy it there"):
        load_index(tmp_path)
    for kind, workers in (("train", 0), ("train", 2), ("eval", 0), ("eval", 2)):
        with pytest.raises(FileNotFoundError, match=r"t-2\.tar"):
            read(opened, kind, workers, lambda bad: None)


@every_reader
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("404", "HTTP 404"),
        ("html", "26 bytes where"),
        ("zero", " 0 bytes where"),
        ("other", "holds other bytes"),
    ],
)
def test_remote_shard_is_no_shard(
    tmp_path: Path, serve: Callable[[Path], Any], kind: str, num_workers: int, fault: str, says: str
) -> None:
    """Zero bytes, a page, nothing, or other bytes at the URL: the run ends, also where bad samples are replaced."""
    folder = tmp_path / "served"
    folder.mkdir()
    shards(folder)
    server = serve(tmp_path)
    index = load_index(f"{server.url}/served", cache=Cache.default(tmp_path / "cache"), retry=FAST)
    if fault == "zero":
        (folder / "t-1.tar").write_bytes(b"")
    else:
        server.fault = lambda name, number: fault if name == "t-1.tar" else ""
    said: list[BadSample] = []
    with pytest.raises(RemoteError, match=rf"shard t-1\.tar: .*{says}"):
        read(index, kind, num_workers, said.extend)
    assert said == []


# ---- labels and keys


def test_label_that_changed_in_the_records(tmp_path: Path) -> None:
    """Still a label, so no range check sees it."""
    shards(tmp_path)
    path = tmp_path / "t-1.tar.idx.npy"
    records = np.load(path)
    records["label"][2] ^= 1
    np.save(path, records)
    with pytest.raises(ValueError, match=r"t-1\.tar\.idx\.npy differs from what index\.json says of it"):
        load_index(tmp_path)
    assert verify(tmp_path, full=False).problems[0] == "t-1.tar.idx.npy: sha256 differs from the index"
    agree(tmp_path, 1)  # an index that was wrong from its begin: the shard's own label differs
    (problem,) = verify(tmp_path, full=True).problems
    assert problem == "shard t-1.tar, key '006': its .cls is not the indexed label 1"


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("000.jpg", "000.jpg", "appears twice"),
        ("000.jpg", "./000.jpg", "key '000' has two images"),
        ("000.jpg", "000.png", "key '000' has two images"),
        ("000.cls", "./000.cls", r"key '000' has two \.cls"),
        ("000.json", "./000.json", r"key '000' has two \.json"),
    ],
)
@pytest.mark.parametrize("between", [0, 40])
def test_duplicate_key(tmp_path: Path, first: str, second: str, says: str, between: int) -> None:
    """Adjacent and far apart; across shards: test_shards::test_duplicate_keys_across_shards_are_refused."""
    members = [
        (first, good(1).get(first, b"{}")),
        *good(between, start=1).items(),
        (second, encode(0, "PNG")),
    ]
    with tarfile.open(tmp_path / "t-0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    refuse_build(tmp_path, rf"shard t-0\.tar.*{says}")


def test_duplicate_key_in_an_index_of_somebody_else(tmp_path: Path) -> None:
    index = shards(tmp_path)
    path = tmp_path / "t-2.tar"
    names = [index.name(key) for key in (8, 0, 10, 11)]  # 0 lies in another shard
    rows = [tuple(int(value) for value in record) for record in index.records(2)]
    shard = describe_shard(path, rows, names)  # type: ignore[arg-type]
    found = index.description
    everything = np.array([index.name(key).encode() for key in range(8)] + [name.encode() for name in names])
    save_index(
        tmp_path,
        Description(
            dataset=found.dataset, split=found.split, classes=found.classes, num_samples=12,
            key_hash=key_hash(everything), shards=(*found.shards[:2], shard), created_by="",
        ),
    )  # fmt: skip
    assert "key '000': appears in more than one sample" in verify(tmp_path, full=False).problems


def test_key_with_dots(tmp_path: Path) -> None:
    members = {f"img.v1.{name}": data for name, data in good(5).items()}
    write_tar(tmp_path / "t-0.tar", members)
    index = index_existing(tmp_path)
    assert index.name(3) == "img.v1.003"
    assert verify(tmp_path, full=True).ok
    assert is_whole(index, read(index, "eval", 0))
    write_tar(tmp_path / "t-0.tar", members | {"img.jpg": encode(0)})
    refuse_build(tmp_path, "key 'img' has no label")


@every_reader
def test_members_not_grouped(tmp_path: Path, kind: str, num_workers: int) -> None:
    members = good(8)
    images = {name: members[name] for name in members if name.endswith(".jpg")}
    labels = {name: members[name] for name in reversed(members) if name.endswith(".cls")}
    write_tar(tmp_path / "t-0.tar", images | labels)
    index = index_existing(tmp_path)
    assert verify(tmp_path, full=True).ok
    batches = read(index, kind, num_workers)
    assert is_whole(index, batches)
    assert column(batches, "label").tolist() == (column(batches, "key") % 2).tolist()
