"""The cache under kills, rivals, full disks and damage: nothing is lost, nothing is fetched twice, nothing hangs."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import cache as cache_module
from data.cache import Cache, NoRoom, parse_bytes
from data.index import DatasetIndex, load_index
from data.lock import Lock, is_alive, place, process_mark
from data.lookahead import LookAhead, Need
from data.read import BadSample, ShardReader
from data.remote import RemoteError, Retry
from data.shards import make

FAST = Retry(attempts=3, delay_s=0.01, max_delay_s=0.02, timeout_s=2.0, wait_s=10.0)
FIRST = "train-000000.tar"
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


def contents(index: DatasetIndex, keys: range | None = None) -> list[bytes]:
    reader = ShardReader(index)
    return [reader.read(key) for key in keys or range(index.num_samples)]


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


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


def open_remote(server: Any, folder: Path, **changes: Any) -> DatasetIndex:
    return load_index(f"{server.url}/train", cache=Cache.default(folder, **changes), retry=FAST)


def shard_files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").glob("*")}


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# -- locks


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "locks" / "a"), Lock(tmp_path / "locks" / "a")
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert first.holder() == f"process {os.getpid()}", "only its holder can release it"
    first.release()
    assert second.acquire()
    with (
        pytest.raises(TimeoutError, match=f"process {os.getpid()} has held .*locks/a for 0 s"),
        first.held(0.0),
    ):
        pass


def test_a_lock_excludes_threads(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with Lock(tmp_path / "a").held(20):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0002)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def dead_mark() -> str:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with open(f"/proc/{child.pid}/stat") as file:
        mark = f"{child.pid}.{file.read().rpartition(')')[2].split()[19]}.{process_mark().split('.')[2]}"
    assert is_alive(mark)
    child.kill()
    wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert not is_alive(mark), "one that waits to be reaped is dead"
    child.communicate()
    return mark


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
def test_stale_locks_are_broken(tmp_path: Path) -> None:
    pid, began, boot = process_mark().split(".")
    for stale in (dead_mark(), f"{pid}.{int(began) + 1}.{boot}", f"{pid}.{began}.elsewhere", "damaged"):
        (tmp_path / "a").symlink_to(f"{stale}.0")
        lock = Lock(tmp_path / "a")
        assert lock.holder() is None
        assert lock.acquire(), stale
        lock.release()
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").symlink_to(f"{process_mark()}.0")
    assert not Lock(tmp_path / "a").acquire()


# -- kills and rivals


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


# -- room


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

    monkeypatch.setattr(Download, "_write", lambda self, file, *rest: real(self, Disk(file), *rest))


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


# -- damage, names, limits


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


# -- look-ahead


def test_shards_come_before_they_are_read(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    hashes = [shard.sha256 for shard in noise.shards]
    index = open_remote(server, tmp_path)
    needs = [Need(10 * n, 10 * n + 10, (n,)) for n in range(6)]
    first = LookAhead(index, index.store, iter(needs), num_ahead=1)  # type: ignore[arg-type]
    second = LookAhead(index, index.store, iter(needs), num_ahead=1)  # type: ignore[arg-type]
    first.reach(0)
    second.reach(0)
    wait_until(lambda: shard_files(tmp_path) == set(hashes[:2]))
    assert cache_module.leased(tmp_path / "leases") == set(hashes[:2])
    first.reach(29)
    wait_until(lambda: shard_files(tmp_path) == set(hashes[:4]))
    assert cache_module.leased(tmp_path / "leases") == set(hashes[:4]), "the other reader is still behind"
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


# -- an index where there was none


def test_opening_an_index_is_light(noise: DatasetIndex) -> None:
    """`list` opens indexes and must answer at once."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
    program += f"from data.index import load_index; load_index({str(noise.root)!r})\n"
    program += "print({'torch', 'fsspec', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_an_index_is_built_only_when_asked(
    noise: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for shard in noise.shards:
        (folder / shard.name).write_bytes((noise.root / shard.name).read_bytes())
    cache = Cache.default(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="shards index"):
        load_index(folder, cache=cache)
    monkeypatch.setattr("data.built.os.access", lambda path, mode: False)  # root may write anywhere
    before = set(folder.iterdir())
    index = load_index(folder, cache=cache, build=True)
    assert contents(index) == contents(noise)
    assert set(folder.iterdir()) == before, "a folder that is read-only stays as it is"
    built = (index.root / "index.json").stat().st_mtime_ns
    assert (load_index(folder, cache=cache, build=True).root / "index.json").stat().st_mtime_ns == built
    monkeypatch.undo()
    assert load_index(folder, cache=cache, build=True).root == folder
    assert load_index(folder).dataset_id == index.dataset_id
    make_again = make(noise.root.parent / "tree", tmp_path / "again", split="train", samples_per_shard=10)
    assert load_index(make_again.root, cache=cache, build=True).dataset_id == noise.dataset_id
