"""The cache's room and what is in it: what goes, what stays, and what damage costs."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.cache import Cache, NoRoom, parse_bytes
from data.index import DatasetIndex
from data.lock import place
from data.read import BadSample, ShardReader
from data.remote import RemoteError
from tests.data.remote_cache import FIRST, contents, open_remote, shard_files


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


def test_least_recently_used_goes_first(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    hashes = [shard.sha256 for shard in noise.shards]
    room = 3 * max(shard.size for shard in noise.shards)
    index = open_remote(server, tmp_path, max_bytes=room)
    contents(index, range(30))
    assert shard_files(tmp_path) == set(hashes[:3])
    for age, shard in ((30, 1), (20, 2), (10, 0)):
        os.utime(tmp_path / "shards" / hashes[shard], (time.time() - age,) * 2)
    contents(index, range(30, 40))
    assert shard_files(tmp_path) == {hashes[0], hashes[2], hashes[3]}
    ShardReader(index).read(20)  # a use, so shard 0 is now the oldest
    contents(index, range(40, 50))
    assert shard_files(tmp_path) == {hashes[2], hashes[3], hashes[4]}


def test_an_evicted_shard_stays_readable_and_is_then_let_go(
    server: Any, noise: DatasetIndex, tmp_path: Path
) -> None:
    """Unlinked files take room on the disk while they are open, so a reader closes them when it opens another."""
    index = open_remote(server, tmp_path, max_bytes=max(shard.size for shard in noise.shards))
    slow, quick, expected = ShardReader(index), ShardReader(index), contents(noise)
    assert slow.read(0) == expected[0]
    assert quick.read(10) == expected[10]
    assert shard_files(tmp_path) == {noise.shards[1].sha256}
    assert slow.read(1) == expected[1]
    assert len(server.requests(FIRST)) == 1
    assert slow.read(11) == expected[11]
    assert list(slow._open) == [1]


def test_what_a_live_reader_holds_stays(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    hashes = [shard.sha256 for shard in noise.shards]
    index = open_remote(server, tmp_path, max_bytes=2 * max(shard.size for shard in noise.shards))
    lease = index.store.cache.lease()  # type: ignore[attr-defined]
    lease.hold(hashes[:1])
    (tmp_path / "leases" / f"{place()}.1.1.gone.0.lease").write_text(hashes[1])
    for key in range(0, 60, 10):
        ShardReader(index).read(key)
        assert hashes[0] in shard_files(tmp_path)
    assert shard_files(tmp_path) == {hashes[0], hashes[5]}, "a dead reader holds nothing"
    assert len(list((tmp_path / "leases").iterdir())) == 1
    lease.hold(hashes)
    with pytest.warns(RuntimeWarning, match="has no room"):
        ShardReader(index).read(10)
    lease.release()
    ShardReader(index).read(10)
    assert hashes[1] in shard_files(tmp_path)


def test_without_room_samples_come_one_by_one(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    index = open_remote(server, tmp_path, max_bytes=1000)
    with pytest.warns(RuntimeWarning, match=r"no room .*limit 1000.* are read one by one, which is slow"):
        assert contents(index) == contents(noise)
    assert all(request.sent < 20_000 and request.first for request in server.requests(".tar"))
    assert shard_files(tmp_path) == set()
    server.fault = lambda name, number: "whole"
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(RemoteError, match=r"no room.*only whole files") as caught,
    ):
        ShardReader(index).read(0)
    assert "\n" not in str(caught.value)


def test_promised_bytes_count(tmp_path: Path) -> None:
    """Two downloads that each would fit do not fit together."""
    cache = Cache.default(tmp_path, max_bytes=150)
    locks = [cache.lock(name * 64) for name in "ab"]
    assert all(lock.acquire() for lock in locks)
    part = cache.reserve("a" * 64, 100)
    with pytest.raises(NoRoom, match="has no room"):
        cache.reserve("b" * 64, 100)
    locks[0].release()  # now that part is an orphan
    cache.reserve("b" * 64, 100)
    assert not part.exists()


def test_damage_in_the_cache_is_mended(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    index = open_remote(server, tmp_path)
    expected = contents(index)
    path = tmp_path / "shards" / noise.shards[0].sha256
    content = bytearray(path.read_bytes())
    content[int(noise.record(3)["offset"]) + 5] ^= 1
    path.write_bytes(content)
    reader = ShardReader(index)
    assert [reader.read(key) for key in range(10)] == expected[:10]
    assert len(server.requests(FIRST)) == 2
    path.write_bytes(content[:-1])
    assert contents(index, range(10)) == expected[:10], "one of another size is not even opened"
    assert len(server.requests(FIRST)) == 3


def test_a_sample_bad_at_the_source_is_bad(
    noise: DatasetIndex, serve: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(noise.root.parent)
    index = open_remote(server, tmp_path)
    records = np.array(index.records(0))
    records["crc32"][3] += 1
    monkeypatch.setitem(index._records, 0, records) if isinstance(index._records, dict) else (
        index._records.__setitem__(0, records)
    )
    with pytest.raises(BadSample, match=f"bad sample .* in shard {FIRST}: its bytes differ"):
        ShardReader(index).read(3)
    assert len(server.requests(FIRST)) == 1


def test_equal_names_do_not_collide(
    noise: DatasetIndex, dots: DatasetIndex, serve: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert noise.shards[0].name == dots.shards[0].name
    for local in (noise, dots):
        assert contents(open_remote(serve(local.root.parent), tmp_path)) == contents(local)


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUST_BITS_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache.default() == Cache(folder=tmp_path / ".cache/robust-bits/shards")
    monkeypatch.setenv("ROBUST_BITS_CACHE", str(tmp_path / "x"))
    monkeypatch.setenv("ROBUST_BITS_CACHE_BYTES", "2G")
    assert Cache.default() == Cache(folder=tmp_path / "x", max_bytes=2 * 10**9)
    assert Cache.default("/y", max_bytes=5) == Cache(folder=Path("/y"), max_bytes=5)
    for wrong in ("", "2 GB", "-1", "0", "G"):
        with pytest.raises(ValueError, match="no number of bytes"):
            parse_bytes(wrong)


def test_a_file_of_another_user_is_read(
    noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not say when it was used may use it all the same."""
    shard = noise.shards[0]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / shard.sha256).write_bytes((noise.root / shard.name).read_bytes())

    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("data.cache.os.utime", refuse)
    assert Cache.default(tmp_path).find(shard.sha256, shard.size) == tmp_path / "shards" / shard.sha256
