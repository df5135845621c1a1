"""Who does a job that one process of a machine should do: a lock that names its holder and outlives nobody.

A lock is a symbolic link whose target is the holder: `pid.start-time.boot.token`. A link appears whole or not
at all, fits into the inode (so it can be made on a full disk), and works on network file systems that have no
flock. A holder that is gone (kill -9, power cut, its pid used again) is recognised and its lock broken.

Two processes that break a stale lock at once may, for microseconds, both hold it. So a lock here saves work and
never carries correctness: what it guards must stay right when done twice.
"""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.05


class Lock:
    """Held by one thread of one process; another `Lock` of the same path never holds it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine = f"{process_mark()}.{secrets.token_hex(4)}"

    def acquire(self) -> bool:
        """Take the lock if nobody alive holds it; does not wait."""
        for _ in range(3):  # each time round, somebody else was faster
            try:
                os.symlink(self._mine, self.path)
                return True
            except FileExistsError:
                if not self._break_stale():
                    return False
            except FileNotFoundError:
                self.path.parent.mkdir(parents=True, exist_ok=True)
        return False

    def release(self) -> None:
        if self._target() == self._mine:
            self.path.unlink(missing_ok=True)

    def holder(self) -> str | None:
        """'process PID' of a live holder, or None."""
        target = self._target()
        return f"process {target.partition('.')[0]}" if target and is_alive(target) else None

    @contextmanager
    def held(self, timeout_s: float) -> Iterator[None]:
        """Wait for the lock, hold it for a block. TimeoutError names the holder and the file."""
        deadline = time.monotonic() + timeout_s
        while not self.acquire():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.holder() or 'another process'} has held {self.path} for {timeout_s:.0f} s; "
                    f"end it, or remove that file"
                )
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            self.release()

    def _target(self) -> str | None:
        try:
            return os.readlink(self.path)
        except OSError:  # gone, or no link: no lock of ours
            return None

    def _break_stale(self) -> bool:
        """True when the lock may be free now."""
        target = self._target()
        if target is not None and is_alive(target):
            return False
        aside = self.path.with_name(f"{self.path.name}.{self._mine}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True
        with suppress(OSError):
            moved = os.readlink(aside)
            if moved != target:  # somebody broke it first and took it: give it back
                os.symlink(moved, self.path)
        aside.unlink(missing_ok=True)
        return True


def process_mark() -> str:
    """`pid.start-time.boot` of this process: no other process ever has the same."""
    pid = os.getpid()
    return f"{pid}.{_start_time(pid)}.{_boot()}"


def is_alive(mark: str) -> bool:
    """Whether the process of a mark, made on this machine, still runs."""
    pid, start, boot = ([*mark.split("."), "", ""])[:3]
    if not pid.isdigit() or boot != _boot():
        return False
    if start:
        return _start_time(int(pid)) == start
    try:  # a system without /proc
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def place() -> str:
    """Name of the set of processes that can see one another: host and, on Linux, pid namespace."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
    try:
        return f"{host}-{re.sub('[^0-9]', '', os.readlink('/proc/self/ns/pid'))}"
    except OSError:
        return host


def _start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a live process; '' for a dead one or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "0"
