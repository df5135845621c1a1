"""The index of a shard folder: where every sample lies, what it is, and a name for the whole.

`index.json` describes the data set; next to each shard NAME lie `NAME.idx.npy` (one record per sample, see
RECORD) and `NAME.keys.npy` (string keys, fixed-width bytes). The arrays are memory-mapped: ImageNet opens in
a fraction of a second, in as many processes as wanted, and no pickle is involved. A sample's *key* in a batch
is its position over all shards. The index of a remote folder is copied to the cache and opened there.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.cache import Cache
from data.description import INDEX_FILE, Description, Shard, read_description
from data.mapped import map_array
from data.remote import Retry, is_url, to_url
from data.store import LocalShards, RemoteShards, ShardStore

__all__ = [
    "FLAG_CMYK",
    "FLAG_FORMAT",
    "FLAG_GRAY",
    "FLAG_PROGRESSIVE",
    "FLAG_ROTATED",
    "FORMATS",
    "INDEX_FILE",
    "RECORD",
    "DatasetIndex",
    "load_index",
]

RECORD: Final = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte in the shard
        ("size", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("flags", "u1"),
        ("crc32", "<u4"),  # of the image bytes: finds damage that still decodes
    ]
)
FORMATS: Final = ("", "JPEG", "PNG", "WEBP")  # flags & FLAG_FORMAT is a place in this list
FLAG_FORMAT, FLAG_GRAY, FLAG_CMYK, FLAG_ROTATED, FLAG_PROGRESSIVE = 0x03, 0x04, 0x08, 0x10, 0x20


class DatasetIndex:
    """An opened index: its folder, and a store that has the shards' bytes. Travels to worker processes as a path
    and is mapped again there.
    """

    def __init__(
        self, root: Path, description: Description, records: list[NDArray[np.void]], *, store: ShardStore
    ) -> None:
        self.root = root
        self.store = store
        self.description = description
        self.dataset_id = description.dataset_id
        self.num_samples = description.num_samples
        self.classes = description.classes
        self.shards = description.shards
        self._records = records
        self._names: dict[int, NDArray[np.bytes_]] = {}
        counts = np.array([shard.num_samples for shard in self.shards], dtype=np.int64)
        self._ends = np.cumsum(counts)

    def locate(self, key: int) -> tuple[int, int]:
        """Position in the dataset -> (number of the shard, row in it)."""
        if not 0 <= key < self.num_samples:
            raise IndexError(f"key {key} is outside 0..{self.num_samples - 1}")
        shard = int(np.searchsorted(self._ends, key, side="right"))
        return shard, int(key - self._ends[shard] + self.shards[shard].num_samples)

    def record(self, key: int) -> np.void:
        """The sample's record, see RECORD."""
        shard, row = self.locate(key)
        found: np.void = self._records[shard][row]
        return found

    def records(self, shard: int) -> NDArray[np.void]:
        """All records of one shard."""
        return self._records[shard]

    def label(self, key: int) -> int:
        return int(self.record(key)["label"])

    def labels(self) -> NDArray[np.int64]:
        """Labels of all samples, int64 [num_samples]. Reads every record: for set-up, not for the loop."""
        return np.concatenate([records["label"] for records in self._records]).astype(np.int64)

    def name(self, key: int) -> str:
        """The sample's string key, such as 'n01440764/n01440764_10026'."""
        shard, row = self.locate(key)
        return bytes(self.names(shard)[row]).decode()

    def describe(self, key: int) -> str:
        """The sample in words, for messages."""
        return f"{self.name(key)!r} in shard {self.shards[self.locate(key)[0]].name}"

    def names(self, shard: int) -> NDArray[np.bytes_]:
        """String keys of one shard as UTF-8 bytes, mapped on first use: training never needs them."""
        if shard not in self._names:
            path = self.root / f"{self.shards[shard].name}.keys.npy"
            self._names[shard] = _open_array(path, self.shards[shard], self.root, _is_names)
        return self._names[shard]

    def __reduce__(self) -> tuple[Callable[..., "DatasetIndex"], tuple[Path, str, ShardStore]]:
        return _reopen, (self.root, self.dataset_id, self.store)


def load_index(
    root: str | Path,
    *,
    cache: Cache | None = None,
    retry: Retry | None = None,
    build: bool = False,
    allow_pipes: bool = False,
) -> DatasetIndex:
    """Open the index in folder `root`, or behind a URL (https, http, gs, s3, hf; `pipe:COMMAND {name}` if allowed).

    `cache` (default: `Cache.default()`) keeps what is remote. `build` writes an index for local shards that have
    none, into their folder, or into the cache where that is read-only. Checks what costs little: schema, sizes,
    counts, extents, labels, the records' hash; `data.shards.verify` reads the rest. FileNotFoundError or
    ValueError naming what does not fit and the remedy; RemoteError where a URL does not answer.
    """
    # Imports inside: both write what they then open through this module, and the second brings torch.
    if is_url(root):
        from data.mirror import mirror_index

        url, cache, retry = to_url(root, allow_pipes=allow_pipes), cache or Cache.default(), retry or Retry()
        folder = mirror_index(url, cache, retry=retry)
        return _checked(_open(folder, RemoteShards(url=url, cache=cache, retry=retry)))
    folder = root = Path(root)
    if build:
        from data.built import index_folder

        folder = index_folder(root, cache or Cache.default())
    index = _open(folder, LocalShards(root))
    for shard in index.shards:
        _check_shard_file(root, shard)
    return _checked(index)


def _open(root: Path, store: ShardStore) -> DatasetIndex:
    description = read_description(root)
    return DatasetIndex(
        root,
        description,
        [
            _open_array(root / f"{shard.name}.idx.npy", shard, root, _is_records)
            for shard in description.shards
        ],
        store=store,
    )


def _checked(index: DatasetIndex) -> DatasetIndex:
    for number, shard in enumerate(index.shards):
        _check_records(index.root, shard, index.records(number), num_classes=len(index.classes))
        _check_hash(index.root, shard)
    return index


def _reopen(root: Path, dataset_id: str, store: ShardStore) -> DatasetIndex:
    index = _open(root, store)
    if index.dataset_id != dataset_id:
        raise ValueError(f"{root}: the index changed while it was in use; start again")
    return index


def _open_array(
    path: Path, shard: Shard, root: Path, accepts: Callable[[np.dtype[Any]], bool]
) -> NDArray[Any]:
    try:
        array = map_array(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; write it again with `shards index {root}`") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); write it again with `shards index {root}`"
        ) from None
    if not accepts(array.dtype) or array.shape != (shard.num_samples,):
        raise ValueError(
            f"{path} holds {array.shape} records of {array.dtype} but shard {shard.name} has "
            f"{shard.num_samples} samples; write it again with `shards index {root}`"
        )
    return array


def _is_records(dtype: np.dtype[Any]) -> bool:
    return dtype == RECORD


def _is_names(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "S"


def _check_shard_file(root: Path, shard: Shard) -> None:
    try:
        size = (root / shard.name).stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(
            f"shard {shard.name} is missing from {root}; copy it there, or index what is there "
            f"with `shards index {root}`"
        ) from None
    if size != shard.size:
        raise ValueError(
            f"shard {shard.name} has {size} bytes but the index says {shard.size}; fetch it again, or if "
            f"it was changed on purpose write the index again with `shards index {root}`"
        )


def _check_hash(root: Path, shard: Shard) -> None:
    """A label that is another one by now is a label: nothing else would notice. 40 ms for ImageNet."""
    path = root / f"{shard.name}.idx.npy"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.index_sha256:
        raise ValueError(
            f"{path} differs from what {INDEX_FILE} says of it (sha256 {found[:12]}, not {shard.index_sha256[:12]}); "
            f"write it again with `shards index {root}`"
        )


def _check_records(root: Path, shard: Shard, records: NDArray[np.void], *, num_classes: int) -> None:
    remedy = f"correct the .cls member and write the index again with `shards index {root}`"
    labels, sizes = records["label"], records["size"]
    if len(records) and not (labels.min() >= 0 and labels.max() < num_classes):
        wrong = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"shard {shard.name} holds label {wrong}, outside 0..{num_classes - 1}; {remedy}")
    # Each alone too: a sum of 64 bits starts again at 0.
    if (
        len(records)
        and max(int(records["offset"].max()), int((records["offset"] + sizes).max())) > shard.size
    ):
        raise ValueError(
            f"{shard.name}.idx.npy points past the shard's {shard.size} bytes; "
            f"write it again with `shards index {root}`"
        )
