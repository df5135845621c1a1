"""An index for local shards that came without one, made when they are first opened, if the caller asks for it."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from data.cache import Cache
from data.description import INDEX_FILE
from data.existing import write_index
from data.watch import Watch

_TIMEOUT_S: Final = 4 * 3600.0  # ImageNet takes an hour on one core: every image is decoded once


def index_folder(
    root: Path,
    cache: Cache,
    *,
    begin: Callable[[Path, int], None] | None = None,
    watch: Watch | None = None,
) -> Path:
    """The folder of the index of the shards in `root`: `root` itself where it has an index or takes one, else a
    folder in the cache named by the shards' path, names, sizes and times.

    Processes that start together build it once; the one that does calls `begin` with that folder and the number of
    tars, and `watch` while it works. ValueError as in `data.existing.index_existing`.
    """
    tars = sum(1 for _ in root.glob("*.tar"))
    if (root / INDEX_FILE).exists() or not tars:
        return root
    into = root if os.access(root, os.W_OK) else cache.folder / "indexes" / f"built-{_fingerprint(root)}"
    with cache.lock(f"build-{_fingerprint(root)}").held(_TIMEOUT_S):
        if not (into / INDEX_FILE).exists():
            if begin is not None:
                begin(into, tars)
            into.mkdir(parents=True, exist_ok=True)
            write_index(root, into, watch=watch)
    return into


def _fingerprint(root: Path) -> str:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(root.glob("*.tar"))]
    return hashlib.sha256(repr((str(root.resolve()), facts)).encode()).hexdigest()
