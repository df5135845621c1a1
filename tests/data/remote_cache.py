"""What the tests of the cache share: shards of noise behind a server, opened through a cache."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.cache import Cache
from data.index import DatasetIndex, load_index
from data.read import ShardReader
from data.remote import Retry

FAST = Retry(attempts=3, delay_s=0.01, max_delay_s=0.02, timeout_s=2.0, wait_s=10.0)
FIRST = "train-000000.tar"


def contents(index: DatasetIndex, keys: range | None = None) -> list[bytes]:
    reader = ShardReader(index)
    return [reader.read(key) for key in keys or range(index.num_samples)]


def open_remote(server: Any, folder: Path, **changes: Any) -> DatasetIndex:
    return load_index(f"{server.url}/train", cache=Cache.default(folder, **changes), retry=FAST)


def shard_files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "shards").glob("*")}


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
