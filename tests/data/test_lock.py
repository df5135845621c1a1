"""Locks between processes: one holder, and none that is dead."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.lock import Lock, is_alive, process_mark
from tests.data.remote_cache import wait_until


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
