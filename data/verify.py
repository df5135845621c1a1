"""Are these shards what their index says? Lists every problem it finds instead of stopping at the first."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.decode import inspect
from data.description import Description, Shard, read_description
from data.mapped import map_array
from data.order import hash64, text_to_int
from data.tar import Member, scan
from data.watch import Nobody, Watch

_MAX_NAMED: Final = 20  # bad samples listed per shard; one overwritten with zeros should not fill the screen
Arrays = tuple[NDArray[np.void], NDArray[np.bytes_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification looked at and what it found; no problems means the folder is as it was made."""

    num_shards: int
    num_samples: int
    num_read: int  # images whose bytes were read
    full: bool
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


class _Task(NamedTuple):
    """Bytes to check: of all samples of a shard, or of some `rows`."""

    path: Path
    shard: Shard
    rows: list[int] | None
    decode: bool
    classes: tuple[str, ...]


def verify(
    dst: str | Path,
    *,
    full: bool,
    sample: int = 0,
    decode: bool = False,
    num_workers: int = 0,
    watch: Watch | None = None,
) -> Report:
    """Check folder `dst` against its index, problems listed.

    Always: files, sizes, counts, labels, hashes of the index arrays, duplicate keys. With `full` every byte is read:
    each shard's sha256, its members, each sample's crc32 and label; with `decode` each image is also decoded. Without
    `full` the crc32 of `sample` images, the same ones each time. `num_workers` processes read (0: this one).
    """
    dst, watch = Path(dst), watch or Nobody()
    description = read_description(dst)
    problems: list[str] = []
    names: list[NDArray[np.bytes_]] = []
    tasks: list[_Task] = []
    picked = _pick(description, 0 if full else sample)
    for number, shard in enumerate(description.shards):
        found, arrays = _open_arrays(dst, shard)
        problems += found
        wrong_size = list(_check_size(dst / shard.name, shard))
        problems += wrong_size
        if arrays is None:
            continue
        records, shard_names = arrays
        names.append(shard_names)
        problems += _check_labels(shard, records, num_classes=len(description.classes))
        if (full or (len(picked[number]) and not wrong_size)) and (dst / shard.name).is_file():
            rows = None if full else picked[number]
            tasks.append(_Task(dst / shard.name, shard, rows, decode, description.classes))
    problems += _check_names(names, expected=description.key_hash)
    problems += _check_tasks(tasks, num_workers, watch)
    return Report(
        num_shards=len(description.shards),
        num_samples=description.num_samples,
        num_read=sum(_num_read(task) for task in tasks),
        full=full,
        problems=tuple(problems),
    )


def key_hash(names: NDArray[np.bytes_]) -> str:
    """Order-free fingerprint of a set of string keys: sum modulo 2**64 of hash64(key), 16 hex digits."""
    numbers = np.array([text_to_int(name) for name in names.tolist()], dtype=np.uint64)
    return f"{int(hash64(numbers).sum(dtype=np.uint64)):016x}"


def _pick(description: Description, number: int) -> list[list[int]]:
    """Rows of each shard: `number` samples of all, chosen by hash of their place."""
    hashed = hash64("verify", np.arange(description.num_samples if number else 0))
    places = np.sort(np.argsort(hashed, kind="stable")[:number])
    picked, start = [], 0
    for shard in description.shards:
        inside = places[(places >= start) & (places < start + shard.num_samples)]
        picked.append((inside - start).tolist())
        start += shard.num_samples
    return picked


def _num_read(task: _Task) -> int:
    return task.shard.num_samples if task.rows is None else len(task.rows)


def _check_tasks(tasks: list[_Task], num_workers: int, watch: Watch) -> list[str]:
    from data.records import shard_workers  # which needs key_hash from here

    problems: list[str] = []
    done, total = 0, sum(map(_num_read, tasks))
    with shard_workers(num_workers) as run:
        for task, found in zip(tasks, run(_check_bytes, tasks), strict=True):
            problems += found
            done += _num_read(task)
            watch.advance(done, total)
    return problems


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
            arrays.append(map_array(path))
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


def _check_bytes(task: _Task) -> list[str]:
    path, shard = task.path, task.shard
    problems, arrays = _open_arrays(path.parent, shard)
    assert arrays is not None, f"{shard.name}: its arrays were there a moment ago: {problems}"
    records, names = arrays
    with path.open("rb") as file:
        if task.rows is None and hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            problems.append(f"shard {shard.name}: sha256 differs from the index")
        rows = range(len(records)) if task.rows is None else task.rows
        faults = [(row, _fault(file.fileno(), records[row], decode=task.decode)) for row in rows]
    bad = [(row, fault) for row, fault in faults if fault]
    for row, fault in bad[:_MAX_NAMED]:
        problems.append(f"shard {shard.name}, key {names[row].decode()!r}: {fault}")
    if len(bad) > _MAX_NAMED:
        problems.append(f"shard {shard.name}: {len(bad) - _MAX_NAMED} more images differ from the index")
    if task.rows is None:
        problems += _check_members(task, records, names)
    return problems


def _fault(descriptor: int, record: np.void, *, decode: bool) -> str:
    """What is wrong with an image's bytes, or ''."""
    content = os.pread(descriptor, int(record["size"]), int(record["offset"]))
    if zlib.crc32(content) != int(record["crc32"]):
        return "the image's crc32 differs from the index"
    if decode:
        try:
            inspect(content)
        except ValueError as error:
            return str(error)
    return ""


def _check_members(task: _Task, records: NDArray[np.void], names: NDArray[np.bytes_]) -> Iterator[str]:
    path, shard = task.path, task.shard
    try:
        members = list(scan(path, require_end=False))  # its sha256 says whether it was cut
    except ValueError as error:
        yield str(error)
        return
    extents = {(member.offset, member.size) for member in members}
    labels = {member.name.removeprefix("./"): member for member in members}
    with path.open("rb", buffering=0) as file:
        for record, name in zip(records, names, strict=True):
            key, number = bytes(name).decode(), int(record["label"])
            label = labels.get(f"{key}.cls") or labels.get(f"{key}.json")
            if (int(record["offset"]), int(record["size"])) not in extents or label is None:
                yield f"shard {shard.name}, key {key!r}: the index points at no such member"
            elif _label_text(file.fileno(), label) not in (str(number), *task.classes[number : number + 1]):
                kind = label.name.rpartition(".")[2]
                yield f"shard {shard.name}, key {key!r}: its .{kind} is not the indexed label {number}"


def _label_text(descriptor: int, member: Member) -> str:
    text = os.pread(descriptor, member.size, member.offset).strip().decode("utf-8", "replace")
    if member.name.endswith(".json"):
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            return str(json.loads(text)["label"])
    return text


def _check_names(names: list[NDArray[np.bytes_]], *, expected: str) -> Iterator[str]:
    if not names:
        return
    together = np.concatenate(names)
    found, counts = np.unique(together, return_counts=True)
    for name in found[counts > 1][:_MAX_NAMED]:
        yield f"key {name.decode()!r}: appears in more than one sample"
    if key_hash(together) != expected:
        yield "the string keys do not add up to the index's key_hash: some are missing or changed"
