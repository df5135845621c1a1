"""Where the bytes of shards are: in the index's own folder, or behind a URL with a cache in front of it."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Protocol

from data.cache import LIMIT_VARIABLE, Cache, NoRoom
from data.download import Download
from data.remote import RemoteError, Retry, join, read_bytes, shown

if TYPE_CHECKING:
    from data.description import Shard

__all__ = ["LocalShards", "NoRoom", "RemoteShards", "ShardStore"]


class ShardStore(Protocol):
    """Gives a shard's bytes to a reader; travels to worker processes."""

    def open(self, shard: "Shard", release: Callable[[], None]) -> int:
        """A file descriptor of the whole shard, which the caller closes. May wait for a download. NoRoom where the
        shard cannot be kept: then `read` gives single samples. `release` is called when shards were evicted, to close
        what the caller has open of them: until then they take room on the disk.
        """

    def read(self, shard: "Shard", offset: int, size: int) -> bytes:
        """Bytes of a shard that has no file here."""

    def doubt(self, shard: "Shard") -> None:
        """A sample differs from the index: forget the shard's file if that is damaged and can be had again."""

    def warn_no_room(self, error: NoRoom) -> None:
        """Called once by a reader whose samples come one by one from now on."""


@dataclass(frozen=True, slots=True)
class LocalShards:
    """Files in a folder; they are read where they are and never written."""

    root: Path

    def open(self, shard: "Shard", release: Callable[[], None]) -> int:
        return os.open(self.root / shard.name, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, shard: "Shard", offset: int, size: int) -> bytes:
        raise AssertionError("a local shard is always a file")

    def doubt(self, shard: "Shard") -> None:
        """Nothing to do: this is the only copy."""

    def warn_no_room(self, error: NoRoom) -> None:
        raise AssertionError("a local shard is always a file") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteShards:
    """Shards under `url`, fetched whole into `cache` when they are first needed."""

    url: str
    cache: Cache
    retry: Retry

    def open(self, shard: "Shard", release: Callable[[], None]) -> int:
        download = Download(
            shard=shard, url=self._url_of(shard), cache=self.cache, retry=self.retry, release=release
        )
        for _ in range(100):  # somebody may evict it in the moment between; not a hundred times
            try:
                return os.open(download.fetch(), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        raise NoRoom(f"shard {shard.name} is evicted from {self.cache.folder} as soon as it is there")

    def read(self, shard: "Shard", offset: int, size: int) -> bytes:
        url = self._url_of(shard)
        try:
            return read_bytes(
                url, retry=self.retry, limit=size, start=offset, stop=offset + size, must_range=True
            )
        except RemoteError as error:
            raise RemoteError(
                f"shard {shard.name}: the cache {self.cache.folder} has no room, and reading one sample failed: "
                f"{error}"
            ) from None

    def doubt(self, shard: "Shard") -> None:
        self.cache.verify(shard.sha256)

    def fetch_ahead(self, shard: "Shard", cancelled: Event) -> None:
        """Download the shard if nobody does; errors are those of `open`."""
        Download(
            shard=shard, url=self._url_of(shard), cache=self.cache, retry=self.retry, cancelled=cancelled
        ).fetch_ahead()

    def check_room(self, shards: Sequence["Shard"], num_needed: int) -> None:
        """ValueError where the cache's limit cannot hold any `num_needed` of the shards at once."""
        needed = sum(sorted((shard.size for shard in shards), reverse=True)[:num_needed])
        if self.cache.max_bytes is not None and needed > self.cache.max_bytes:
            raise ValueError(
                f"the cache's limit of {self.cache.max_bytes} bytes cannot hold the {needed} bytes of "
                f"{min(num_needed, len(shards))} shards that are in use at once; raise {LIMIT_VARIABLE} or lower "
                f"the window"
            )

    def warn_no_room(self, error: NoRoom) -> None:
        warnings.warn(
            f"{error}; until then samples of {shown(self.url)} are read one by one, which is slow",
            RuntimeWarning,
            stacklevel=2,
        )

    def _url_of(self, shard: "Shard") -> str:
        return join(self.url, shard.name)
