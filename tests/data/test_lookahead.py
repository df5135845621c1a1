"""Shards come before they are read, once for all readers of a machine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.index import DatasetIndex
from data.lease import leased
from data.lock import Lock
from data.lookahead import LookAhead, Need
from data.remote import RemoteError
from tests.data.remote_cache import contents, open_remote, shard_files, wait_until


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


def test_shards_come_before_they_are_read(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    hashes = [shard.sha256 for shard in noise.shards]
    index = open_remote(server, tmp_path)
    needs = [Need(10 * n, 10 * n + 10, (n,)) for n in range(6)]
    first = LookAhead(index, index.store, iter(needs), num_ahead=1)  # type: ignore[arg-type]
    second = LookAhead(index, index.store, iter(needs), num_ahead=1)  # type: ignore[arg-type]
    first.reach(0)
    second.reach(0)
    wait_until(lambda: shard_files(tmp_path) == set(hashes[:2]))
    assert leased(tmp_path / "leases") == set(hashes[:2])
    first.reach(29)
    wait_until(lambda: shard_files(tmp_path) == set(hashes[:4]))
    assert leased(tmp_path / "leases") == set(hashes[:4]), "the other reader is still behind"
    first.close()
    second.reach(45)  # its process leads now
    wait_until(lambda: shard_files(tmp_path) == set(hashes))
    second.close()
    assert len(server.requests(".tar")) == 6
    assert not list(tmp_path.glob("leases/*")) + list(tmp_path.glob("locks/*"))


def test_only_the_leader_downloads(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    index = open_remote(server, tmp_path)
    leader = index.store.cache.lock(f"ahead-{index.dataset_id}")  # type: ignore[attr-defined]
    assert leader.acquire()
    ahead = LookAhead(index, index.store, iter([Need(0, 60, (0, 1))]), num_ahead=1)  # type: ignore[arg-type]
    ahead.reach(0)
    time.sleep(0.2)
    assert server.requests(".tar") == []
    leader.release()
    wait_until(lambda: len(shard_files(tmp_path)) == 2)
    ahead.close()


def test_closing_does_not_wait_for_a_download(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    index = open_remote(server, tmp_path)
    server.fault = lambda name, number: "slow:0.2"
    ahead = LookAhead(index, index.store, iter([Need(0, 60, tuple(range(6)))]), num_ahead=1)  # type: ignore[arg-type]
    ahead.reach(0)
    wait_until(lambda: any(p.stat().st_size > 10_000 for p in tmp_path.glob("shards/*.part.*")))
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 1.5
    server.fault = lambda name, number: ""
    assert contents(index) == contents(noise)
    assert any(request.first for request in server.requests(".tar")), "what had come is used"


def test_what_fails_ahead_fails_for_the_reader(server: Any, tmp_path: Path) -> None:
    index = open_remote(server, tmp_path)
    server.fault = lambda name, number: "404" if name == "train-000003.tar" else ""
    ahead = LookAhead(index, index.store, iter([Need(0, 60, tuple(range(6)))]), num_ahead=1)  # type: ignore[arg-type]
    ahead.reach(0)
    wait_until(lambda: len(shard_files(tmp_path)) == 5)
    with pytest.raises(RemoteError, match=r"shard train-000003.tar: .*404"):
        contents(index)
    ahead.close()


def test_trouble_in_the_cache_ends_no_thread(
    server: Any, noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that hesitates: what failed ahead is tried again, or fetched by the reader."""
    real, failures = Lock.acquire, list[OSError]()

    def acquire(lock: Lock) -> bool:
        if failures:
            raise failures.pop()
        return real(lock)

    monkeypatch.setattr(Lock, "acquire", acquire)
    index = open_remote(server, tmp_path)
    failures += [OSError(5, "Input/output error") for _ in range(6)]
    ahead = LookAhead(index, index.store, iter([Need(0, 60, (0, 1))]), num_ahead=1)  # type: ignore[arg-type]
    ahead.reach(0)
    wait_until(lambda: len(shard_files(tmp_path)) == 2)
    ahead.close()
