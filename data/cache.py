"""A folder of downloaded shards that all processes of a machine share.

    shards/SHA256                          whole and verified before it got this name
    shards/SHA256.SIZE.part.PLACE.PID      being downloaded, or left by a process that died; SIZE is what it will be
    indexes/DATASET_ID/                    index.json and the arrays of one data set
    locks/, leases/                        who does what; which shards a live reader still needs

Names are hashes, so equal names mean equal bytes, and two data sets with a `train-000000.tar` do not meet. Least
recently used shards go first when room is needed, but none that a live process holds a lease on: evicting in
the middle of a window would have it downloaded again at once.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from data.lease import FOREIGN_S, Lease, leased
from data.lock import Lock, place

FOLDER_VARIABLE: Final = "ROBUST_BITS_CACHE"
LIMIT_VARIABLE: Final = "ROBUST_BITS_CACHE_BYTES"
_LOCK_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
_UNITS: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class NoRoom(OSError):
    """The shard does not fit: everything that may go has gone."""


class _Entry(NamedTuple):
    path: Path
    sha256: str
    declared: int  # bytes it has, or will have
    actual: int
    used_at: float
    is_part: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """`max_bytes` of shards at most; None: as many as the disk takes, but for a reserve."""

    folder: Path
    max_bytes: int | None = None

    @staticmethod
    def default(folder: str | Path | None = None, *, max_bytes: int | None = None) -> "Cache":
        """Folder and limit as given, else from ROBUST_BITS_CACHE and ROBUST_BITS_CACHE_BYTES (as 200G), else
        ~/.cache/robust-bits/shards without a limit.
        """
        chosen = folder or os.environ.get(FOLDER_VARIABLE) or "~/.cache/robust-bits/shards"
        limit = os.environ.get(LIMIT_VARIABLE, "") if max_bytes is None else str(max_bytes)
        return Cache(
            folder=Path(chosen).expanduser().absolute(), max_bytes=parse_bytes(limit) if limit else None
        )

    def find(self, sha256: str, size: int) -> Path | None:
        """The shard's file, marked as just used; None where there is none. One of another size is removed."""
        path = self.folder / "shards" / sha256
        try:
            if path.stat().st_size == size:
                with suppress(PermissionError):  # of another user, who lets us read
                    os.utime(path)
                return path
            path.unlink()  # cut by a disk that lost its last writes
        except FileNotFoundError:
            pass
        return None

    def verify(self, sha256: str) -> None:
        """Remove the shard's file if its bytes have changed since they were verified."""
        path = self.folder / "shards" / sha256
        with suppress(FileNotFoundError), path.open("rb") as file:
            damaged = os.fstat(file.fileno()).st_ino
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256 and path.stat().st_ino == damaged:
                path.unlink()

    def lock(self, name: str) -> Lock:
        """The lock `name` among the processes of this machine."""
        return Lock(self.folder / "locks" / f"{name}.{place()}")

    def reserve(self, sha256: str, size: int) -> Path:
        """The part file to download into, with what a dead process left of it; NoRoom where it cannot fit.

        The caller holds the shard's lock, so parts made on this machine are nobody else's.
        """
        part = self.folder / "shards" / f"{sha256}.{size}.part.{place()}.{os.getpid()}"
        part.parent.mkdir(parents=True, exist_ok=True)
        with self.lock("room").held(_LOCK_TIMEOUT_S):
            left = sorted(part.parent.glob(f"{sha256}.{size}.part.{place()}.*"), key=_size_of)
            if left:
                left.pop().rename(part)
            for path in left:
                path.unlink(missing_ok=True)
            part.touch()
            try:
                self._make_room(keep=sha256)
            except NoRoom:
                part.unlink()
                raise
        return part

    def commit(self, part: Path, sha256: str) -> Path:
        """Give a verified part its name; it is on the disk before it has it."""
        path = self.folder / "shards" / sha256
        part.replace(path)
        _sync(path.parent)
        return path

    def squeeze(self, sha256: str) -> None:
        """The disk is full though there seemed to be room: evict one shard, or NoRoom."""
        with self.lock("room").held(_LOCK_TIMEOUT_S):
            entries = self._entries()
            victim = next(self._evictable(entries, keep=sha256), None)
            if victim is None:
                raise self._no_room(entries)
            victim.path.unlink(missing_ok=True)

    def lease(self) -> Lease:
        """For a reader to name the shards that must stay."""
        return Lease(self.folder / "leases")

    @contextmanager
    def slot(self, pool: str, count: int, *, timeout_s: float) -> Iterator[None]:
        """One of `count` places for downloads on this machine; TimeoutError when no byte arrives anywhere."""
        locks = [self.lock(f"slot-{pool}-{number}") for number in range(count)]
        watch = self.watch(timeout_s, f"{count} other downloads")
        while not (taken := next((lock for lock in locks if lock.acquire()), None)):
            watch.wait()
        try:
            yield
        finally:
            taken.release()

    def watch(self, timeout_s: float, what: str) -> "Watch":
        return Watch(self.folder / "shards", timeout_s, what)

    def _make_room(self, *, keep: str) -> None:
        """Evict until all that is promised fits; nothing is evicted where that would not be enough."""
        entries = self._entries()
        shortage, victims = self._shortage(entries), []
        for victim in self._evictable(entries, keep=keep):
            if shortage <= 0:
                break
            victims.append(victim)
            shortage -= victim.declared
        if shortage > 0:
            raise self._no_room(entries)
        for victim in victims:
            victim.path.unlink(missing_ok=True)

    def _shortage(self, entries: list[_Entry]) -> int:
        over = 0 if self.max_bytes is None else sum(entry.declared for entry in entries) - self.max_bytes
        disk = shutil.disk_usage(self.folder)
        promised = sum(max(entry.declared - entry.actual, 0) for entry in entries)
        return max(over, promised + min(disk.total // 50, 10**9) - disk.free)

    def _evictable(self, entries: list[_Entry], *, keep: str) -> Iterator[_Entry]:
        held = leased(self.folder / "leases") | {keep}
        for entry in sorted(entries, key=lambda entry: entry.used_at):
            if entry.sha256 not in held and not (entry.is_part and self._is_active(entry)):
                yield entry

    def _is_active(self, part: _Entry) -> bool:
        if f".part.{place()}." in part.path.name:
            return self.lock(part.sha256).holder() is not None
        return time.time() - part.used_at < FOREIGN_S

    def _entries(self) -> list[_Entry]:
        found = []
        for path in (self.folder / "shards").iterdir():
            sha256, _, rest = path.name.partition(".")
            size = rest.partition(".")[0]
            with suppress(FileNotFoundError):
                stat = path.stat()
                declared = int(size) if size.isdigit() else stat.st_size
                found.append(_Entry(path, sha256, declared, stat.st_size, stat.st_mtime, bool(rest)))
        return found

    def _no_room(self, entries: list[_Entry]) -> NoRoom:
        held = sum(entry.actual for entry in entries)
        limit = "the disk is full but for a reserve" if self.max_bytes is None else f"limit {self.max_bytes}"
        return NoRoom(
            f"cache {self.folder} has no room ({held} bytes in use, {limit}); free the disk, raise "
            f"{LIMIT_VARIABLE}, or set {FOLDER_VARIABLE} to a folder on a larger disk"
        )


class Watch:
    """Patience with other processes: it ends when for `timeout_s` nothing in the cache has moved."""

    def __init__(self, folder: Path, timeout_s: float, what: str) -> None:
        self._folder, self._timeout_s, self._what = folder, timeout_s, what
        self._seen: object = None
        self._since = self._look_at = time.monotonic()

    def wait(self) -> None:
        time.sleep(_POLL_S)
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + min(self._timeout_s / 4, 2.0)
        moving = {path.name: _size_of(path) for path in self._folder.glob("*.part.*")}
        if moving != self._seen:
            self._seen, self._since = moving, time.monotonic()
        elif time.monotonic() - self._since > self._timeout_s:
            raise TimeoutError(
                f"waited {self._timeout_s:.0f} s for {self._what} in {self._folder} and not a byte arrived; "
                f"end the process that hangs and start again"
            )


def parse_bytes(text: str) -> int:
    """'200G' or '1000000' as a number of bytes; ValueError for anything else."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "")
    if not number.isdigit() or int(number) == 0:
        raise ValueError(f"{text!r} is no number of bytes; give for example 200G or 1000000")
    return int(number) * _UNITS.get(unit, 1)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
