"""A disk that is full, or fills up: shards are evicted, or samples come one by one."""

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data.index import DatasetIndex
from data.read import ShardReader
from tests.data.remote_cache import contents, open_remote, shard_files


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


def full_disk(monkeypatch: pytest.MonkeyPatch, part_limit: Callable[[], int]) -> None:
    """Writes past what `part_limit` allows fail as on a full disk, after a partial write."""
    from data.download import Download

    real = Download._write

    class Disk:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, view: memoryview) -> int:
            left = part_limit() - self.file.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(view[:left]))

    monkeypatch.setattr(Download, "_write", lambda self, file, *rest: real(self, Disk(file), *rest))  # type: ignore[arg-type]


def test_a_disk_that_fills_up_evicts(
    server: Any, noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_remote(server, tmp_path)
    reader = ShardReader(index)
    reader.read(0)
    full_disk(monkeypatch, lambda: 60_000 if len(shard_files(tmp_path)) > 1 else 10**9)
    assert [reader.read(key) for key in range(10, 20)] == contents(noise, range(10, 20))
    assert list(reader._open) == [1], "an open file would keep its room"
    assert shard_files(tmp_path) == {noise.shards[1].sha256}


def test_a_full_disk_streams(
    server: Any, noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_remote(server, tmp_path)
    full_disk(monkeypatch, lambda: 60_000)
    with pytest.warns(RuntimeWarning, match="read one by one"):
        assert contents(index, range(20)) == contents(noise, range(20))
    assert shard_files(tmp_path) == set(), "a part that cannot be finished is room for others"


def test_a_small_disk(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    """A real one: 700 kB hold four of six shards, and none when somebody else fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a tmpfs")
    try:
        index = open_remote(server, disk)
        assert contents(index) == contents(noise)
        assert 3 <= len(shard_files(disk)) <= 4
        for path in (disk / "shards").iterdir():
            path.unlink()
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.warns(RuntimeWarning, match="disk is full"):
            assert contents(open_remote(server, disk)) == contents(noise)
        (disk / "ballast").unlink()
        assert contents(open_remote(server, disk)) == contents(noise)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
