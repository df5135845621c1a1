"""Downloads that are killed, cut, or done by several at once: nothing is lost, nothing is fetched twice."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.cache import Cache
from data.index import DatasetIndex, load_index
from data.lock import place
from data.read import ShardReader
from data.remote import RemoteError, Retry
from tests.data.remote_cache import FIRST, contents, open_remote, shard_files, wait_until


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


READ = """
import sys
sys.path.insert(0, {root!r})
from data.cache import Cache
from data.index import load_index
from data.read import ShardReader
from data.remote import Retry
index = load_index({url!r}, cache=Cache.default({cache!r}), retry=Retry(delay_s=0.01, timeout_s=5.0))
print("open", flush=True)
reader = ShardReader(index)
print(sum(len(reader.read(key)) for key in range({count})), flush=True)
"""


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Callable[[int], "subprocess.Popen[str]"]]:
    """start(N) -> a process that reads the first N samples from the server through the cache in tmp_path."""
    started: list[subprocess.Popen[str]] = []

    def run(count: int) -> "subprocess.Popen[str]":
        root = str(Path(__file__).parents[2])
        program = READ.format(root=root, url=f"{server.url}/train", cache=str(tmp_path), count=count)
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_killed_download_goes_on_where_it_was(server: Any, start: Any, tmp_path: Path) -> None:
    server.fault = lambda name, number: "slow:0.1" if name == FIRST and number == 0 else ""
    victim = start(10)
    wait_until(lambda: any(p.stat().st_size > 40_000 for p in tmp_path.glob("shards/*.part.*")))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (part,) = tmp_path.glob("shards/*.part.*")
    kept = part.stat().st_size
    size = (server.root / "train" / FIRST).stat().st_size
    assert 40_000 < kept < size
    assert list(tmp_path.glob("locks/*")), "it had no time to tidy up"
    assert int(start(10).communicate()[0]) > 100_000
    first, second = server.requests(FIRST)
    assert (first.first, second.first, second.sent) == (None, kept, size - kept)
    assert shard_files(tmp_path) == {load_index(server.root / "train").shards[0].sha256}


def test_a_damaged_part_costs_one_more_download(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    """After a power cut a part may end in zeros."""
    shard = noise.shards[0]
    (tmp_path / "shards").mkdir(parents=True)
    (tmp_path / "shards" / f"{shard.sha256}.{shard.size}.part.{place()}.1").write_bytes(bytes(50_000))
    assert contents(open_remote(server, tmp_path), range(10)) == contents(noise, range(10))
    assert [request.first for request in server.requests(FIRST)] == [50_000, None]


def test_a_whole_part_needs_no_request(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    shard = noise.shards[0]
    (tmp_path / "shards").mkdir(parents=True)
    part = tmp_path / "shards" / f"{shard.sha256}.{shard.size}.part.{place()}.1"
    part.write_bytes((noise.root / shard.name).read_bytes())
    assert contents(open_remote(server, tmp_path), range(10)) == contents(noise, range(10))
    assert server.requests(FIRST) == []


def test_processes_share_one_download(server: Any, start: Any, tmp_path: Path) -> None:
    server.fault = lambda name, number: "slow:0.01"
    processes = [start(20) for _ in range(3)]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert Counter(request.name for request in server.requests(".tar")) == {FIRST: 1, "train-000001.tar": 1}
    assert len(server.requests(".npy")) == 12
    assert not list(tmp_path.glob("locks/*"))
    assert len(shard_files(tmp_path)) == 2


def test_a_rival_that_hangs_is_named(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    cache = Cache.default(tmp_path)
    impatient = Retry(wait_s=0.3)
    index = load_index(f"{server.url}/train", cache=cache, retry=impatient)
    rival = cache.lock(noise.shards[0].sha256)
    assert rival.acquire()
    with pytest.raises(
        TimeoutError, match=rf"waited 0 s for shard {FIRST} in .*shards and not a byte arrived"
    ):
        ShardReader(index).read(0)
    rival.release()
    slots = [cache.lock(f"slot-demand-{number}") for number in range(4)]
    assert all(slot.acquire() for slot in slots)
    with pytest.raises(TimeoutError, match="4 other downloads"):
        ShardReader(index).read(0)
    assert cache.lock(noise.shards[0].sha256).holder() is None
    slots[2].release()
    assert contents(index, range(10)) == contents(noise, range(10))


def test_a_downloader_that_fails_hands_over(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    server.fault = lambda name, number: "404" if number == 0 and name == FIRST else "slow:0.01"
    index, results = open_remote(server, tmp_path), list[object]()

    def read() -> None:
        try:
            results.append(contents(index, range(10)))
        except RemoteError as error:
            results.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("404" in str(result) for result in results if isinstance(result, str)) == 1
    assert sum(result == contents(noise, range(10)) for result in results) == 2
