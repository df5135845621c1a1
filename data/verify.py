"""Are these shards what their index says? Lists every problem it finds instead of stopping at the first."""

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from data.index import FLAG_FORMAT, FORMATS, Shard, load_index, read_description
from data.order import hash64, text_to_int
from data.tar import scan

_MAX_NAMED = 20  # bad samples listed per shard; a shard overwritten with zeros should not fill the screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification looked at and what it found; no problems means the folder is as it was made."""

    num_shards: int
    num_samples: int
    full: bool
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


class Info(TypedDict):
    """Plain facts about an indexed folder."""

    dataset: str
    split: str
    dataset_id: str
    num_samples: int
    num_classes: int
    classes: list[str]
    class_counts: list[int]
    num_shards: int
    bytes: int
    formats: dict[str, int]
    created_by: str


def verify(dst: str | Path, *, full: bool) -> Report:
    """Check folder `dst` against its index, problems listed.

    Without `full`: files, sizes, counts, labels, hashes of the index arrays, duplicate keys. With it every
    byte is read: each shard's sha256, its members, each sample's crc32 and label.
    """
    dst = Path(dst)
    description = read_description(dst)
    problems: list[str] = []
    names: list[NDArray[np.bytes_]] = []
    for shard in description.shards:
        found, arrays = _open_arrays(dst, shard)
        problems += found
        problems += _check_size(dst / shard.name, shard)
        if arrays is None:
            continue
        records, shard_names = arrays
        names.append(shard_names)
        problems += _check_labels(shard, records, num_classes=len(description.classes))
        if full and (dst / shard.name).is_file():
            problems += _check_bytes(dst / shard.name, shard, records, shard_names)
    problems += _check_names(names, expected=description.key_hash)
    return Report(
        num_shards=len(description.shards),
        num_samples=description.num_samples,
        full=full,
        problems=tuple(problems),
    )


def info(dst: str | Path) -> Info:
    """Counts, classes, bytes, formats and the id of the data set in folder `dst`."""
    index = load_index(dst)
    flags = np.concatenate([index.records(number)["flags"] for number in range(len(index.shards))])
    formats = np.bincount(flags & FLAG_FORMAT, minlength=len(FORMATS))
    return Info(
        dataset=index.description.dataset,
        split=index.description.split,
        dataset_id=index.dataset_id,
        num_samples=index.num_samples,
        num_classes=len(index.classes),
        classes=list(index.classes),
        class_counts=np.bincount(index.labels(), minlength=len(index.classes)).tolist(),
        num_shards=len(index.shards),
        bytes=sum(shard.size for shard in index.shards),
        formats={name: int(count) for name, count in zip(FORMATS, formats, strict=True) if count},
        created_by=index.description.created_by,
    )


def key_hash(names: NDArray[np.bytes_]) -> str:
    """Order-free fingerprint of a set of string keys: sum modulo 2**64 of hash64(key), 16 hex digits."""
    numbers = np.array([text_to_int(name) for name in names.tolist()], dtype=np.uint64)
    return f"{int(hash64(numbers).sum(dtype=np.uint64)):016x}"


def _open_arrays(
    dst: Path, shard: Shard
) -> tuple[list[str], tuple[NDArray[np.void], NDArray[np.bytes_]] | None]:
    problems, arrays = [], []
    for suffix, expected in (("idx", shard.index_sha256), ("keys", shard.keys_sha256)):
        path = dst / f"{shard.name}.{suffix}.npy"
        if not path.is_file():
            problems.append(f"{path.name}: missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            problems.append(f"{path.name}: sha256 differs from the index")
        else:
            arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
    if len(arrays) < 2:
        return problems, None
    return problems, (arrays[0], arrays[1])


def _check_size(path: Path, shard: Shard) -> Iterator[str]:
    if not path.is_file():
        yield f"shard {shard.name}: missing"
    elif (size := path.stat().st_size) != shard.size:
        yield f"shard {shard.name}: {size} bytes, the index says {shard.size}"


def _check_labels(shard: Shard, records: NDArray[np.void], *, num_classes: int) -> Iterator[str]:
    labels = records["label"]
    for row in np.flatnonzero((labels < 0) | (labels >= num_classes))[:_MAX_NAMED]:
        yield f"shard {shard.name}, sample {row}: label {labels[row]} is outside 0..{num_classes - 1}"


def _check_bytes(
    path: Path, shard: Shard, records: NDArray[np.void], names: NDArray[np.bytes_]
) -> Iterator[str]:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"shard {shard.name}: sha256 differs from the index"
        bad = [row for row, record in enumerate(records) if not _is_whole(file.fileno(), record)]
    for row in bad[:_MAX_NAMED]:
        yield f"shard {shard.name}, key {names[row].decode()!r}: the image's crc32 differs from the index"
    if len(bad) > _MAX_NAMED:
        yield f"shard {shard.name}: {len(bad) - _MAX_NAMED} more images differ from the index"
    yield from _check_members(path, shard, records, names)


def _is_whole(descriptor: int, record: np.void) -> bool:
    content = os.pread(descriptor, int(record["size"]), int(record["offset"]))
    return zlib.crc32(content) == int(record["crc32"])


def _check_members(
    path: Path, shard: Shard, records: NDArray[np.void], names: NDArray[np.bytes_]
) -> Iterator[str]:
    try:
        members = list(scan(path))
    except ValueError as error:
        yield str(error)
        return
    extents = {(member.offset, member.size) for member in members}
    labels = {member.name.removeprefix("./"): member for member in members if member.name.endswith(".cls")}
    with path.open("rb", buffering=0) as file:
        for record, name in zip(records, names, strict=True):
            key = bytes(name).decode()
            label = labels.get(f"{key}.cls")
            if (int(record["offset"]), int(record["size"])) not in extents or label is None:
                yield f"shard {shard.name}, key {key!r}: the index points at no such member"
            elif os.pread(file.fileno(), label.size, label.offset).strip() != str(record["label"]).encode():
                yield f"shard {shard.name}, key {key!r}: its .cls is not the indexed label {record['label']}"


def _check_names(names: list[NDArray[np.bytes_]], *, expected: str) -> Iterator[str]:
    if not names:
        return
    together = np.concatenate(names)
    found, counts = np.unique(together, return_counts=True)
    for name in found[counts > 1][:_MAX_NAMED]:
        yield f"key {name.decode()!r}: appears in more than one sample"
    if key_hash(together) != expected:
        yield "the string keys do not add up to the index's key_hash: some are missing or changed"
