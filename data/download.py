"""One shard from its URL into the cache, once per machine, whatever interrupts it.

Whoever holds the shard's lock downloads; all others wait for the file. Bytes go to a part file that the next
process continues after a cut or a kill, and sha256 decides in the end, so a part needs no trust.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Final

from data.cache import Cache
from data.lease import FULL
from data.remote import RemoteError, Retry, read_stream, shown

if TYPE_CHECKING:
    from data.description import Shard

DEMAND, AHEAD = "demand", "ahead"  # pools of download slots: readers never queue behind the look-ahead
_SLOTS: Final = 4  # downloads at once in each pool on one machine
_WHOLE_TRIES: Final = 2  # a part left by a power cut may be damaged; a second wrong hash is the server's


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """How to get one shard. `release` closes what the caller has open of evicted shards: until then an evicted file
    takes room on the disk.
    """

    shard: "Shard"
    url: str
    cache: Cache
    retry: Retry
    cancelled: Event | None = None
    release: Callable[[], None] = _nothing

    def fetch(self, pool: str = DEMAND) -> Path:
        """The shard's file in the cache: found, downloaded here, or waited for while another process downloads it.

        RemoteError with shard and URL when that fails, NoRoom when the cache cannot take it, TimeoutError when the
        process that downloads it brings nothing for `retry.wait_s`.
        """
        shard, cache = self.shard, self.cache
        lock = cache.lock(shard.sha256)
        watch = cache.watch(self.retry.wait_s, f"shard {shard.name}")
        while not (path := cache.find(shard.sha256, shard.size)):
            if lock.acquire():
                try:
                    if path := cache.find(shard.sha256, shard.size):
                        return path
                    with cache.slot(pool, _SLOTS, timeout_s=self.retry.wait_s):
                        return self._download()
                except FileNotFoundError:  # the part went under another name: see data.lock on stale locks
                    pass
                finally:
                    lock.release()
            watch.wait()
        return path

    def fetch_ahead(self) -> None:
        """Like `fetch`, but nobody waits for it: a shard that another process downloads is left to it."""
        if self.cache.lock(self.shard.sha256).holder() is None:
            self.fetch(AHEAD)

    def _download(self) -> Path:
        shard = self.shard
        for _ in range(_WHOLE_TRIES):
            part = self.cache.reserve(shard.sha256, shard.size)
            self.release()
            try:
                found = self._complete(part)
            except RemoteError as error:
                raise _named(error, shard) from None
            finally:
                if _is_empty(part):  # nothing to continue from
                    part.unlink()
            if found == shard.sha256:
                return self.cache.commit(part, shard.sha256)
            first = _first_bytes(part)
            part.unlink()
        raise RemoteError(
            f"shard {shard.name}: {shown(self.url)} holds other bytes than the index says (sha256 {found[:12]}, "
            f"not {shard.sha256[:12]}; they start {first!r}); it was changed or damaged: copy the shard there "
            f"again, or write its index again with `shards index`"
        )

    def _complete(self, part: Path) -> str:
        """Download what the part lacks; sha256 of the whole, in hex."""
        size = self.shard.size
        with part.open("r+b", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256")
            start = file.seek(0, os.SEEK_END)
            if start < size:
                for chunk in read_stream(
                    self.url, start=start, size=size, retry=self.retry, cancelled=self.cancelled
                ):
                    digest.update(chunk)
                    self._write(file, chunk, part)
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _write(self, file: IO[bytes], chunk: bytes, part: Path) -> None:
        """All of the chunk, evicting other shards while the disk is full; NoRoom when nothing is left to evict."""
        view = memoryview(chunk)
        while view:
            try:
                view = view[file.write(view) :]
            except OSError as error:
                if error.errno not in FULL:
                    raise
                try:
                    self.cache.squeeze(self.shard.sha256)
                except OSError:
                    part.unlink(missing_ok=True)  # its bytes are room for whoever fits
                    raise
                self.release()


def _named(error: RemoteError, shard: "Shard") -> RemoteError:
    named = RemoteError(f"shard {shard.name}: {error}")
    named.is_final = error.is_final
    return named


def _is_empty(part: Path) -> bool:
    return part.exists() and part.stat().st_size == 0


def _first_bytes(part: Path) -> bytes:
    with part.open("rb") as file:
        return file.read(24)
