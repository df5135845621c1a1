"""Index records of one shard: what makes them out of image bytes and what writes them beside the tar."""

import hashlib
import importlib.metadata
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np

from data.decode import inspect
from data.description import Description, Shard, save_index
from data.index import FLAG_CMYK, FLAG_GRAY, FLAG_PROGRESSIVE, FLAG_ROTATED, FORMATS, RECORD
from data.verify import key_hash
from data.workers import start_worker, worker_context

Row = tuple[int, int, int, int, int, int, int]  # RECORD's fields in order
Task = TypeVar("Task")
Result = TypeVar("Result")
_MAX_SIDE: Final = 65535


class Map(Protocol):
    """The built-in `map` of one iterable, or a process pool's."""

    def __call__(self, function: Callable[[Task], Result], tasks: Iterable[Task], /) -> Iterable[Result]: ...


def to_row(content: bytes, offset: int, label: int, *, source: str, decode: bool = True) -> Row:
    """Describe an image, after decoding it to the end (or, without `decode`, opening it); ValueError naming `source`
    where that fails.
    """
    try:
        header = inspect(content, decode=decode)
        if header.format not in FORMATS[1:] or max(header.width, header.height) > _MAX_SIDE:
            raise ValueError(
                f"{header.format} of {header.width}x{header.height} is no JPEG, PNG or WebP below {_MAX_SIDE}"
            )
    except ValueError as error:
        raise ValueError(f"{source}: {error}; remove or repair it") from None
    flags = FORMATS.index(header.format)
    flags |= FLAG_GRAY * header.is_gray | FLAG_CMYK * header.is_cmyk
    flags |= FLAG_ROTATED * header.is_rotated | FLAG_PROGRESSIVE * header.is_progressive
    return offset, len(content), label, header.width, header.height, flags, zlib.crc32(content)


def describe_shard(path: Path, rows: list[Row], names: list[str], *, folder: Path | None = None) -> Shard:
    """Write the two arrays beside the shard, or into `folder`, and describe all three."""
    hashes = []
    for suffix, array in (
        ("idx", np.array(rows, dtype=RECORD)),
        ("keys", np.array([name.encode() for name in names])),
    ):
        target = (folder or path.parent) / f"{path.name}.{suffix}.npy"
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        partial.replace(target)
        hashes.append(_sha256(target))
    return Shard(
        name=path.name,
        size=path.stat().st_size,
        sha256=_sha256(path),
        num_samples=len(rows),
        index_sha256=hashes[0],
        keys_sha256=hashes[1],
    )


@contextmanager
def shard_workers(num_workers: int) -> Iterator[Map]:
    """`map` in `num_workers` processes (0: in this one), which stay for several calls.

    Ctrl-C ends them at once. ChildProcessError where one of them was killed.
    """
    if num_workers == 0:
        yield map
        return
    with ProcessPoolExecutor(num_workers, mp_context=worker_context(), initializer=start_worker) as pool:
        try:
            yield pool.map
        except BrokenProcessPool:
            raise ChildProcessError(
                "a helper process ended early, perhaps killed for want of memory; use fewer --workers"
            ) from None
        except KeyboardInterrupt:
            for process in list(pool._processes.values()):  # Python 3.14 calls it kill_workers
                process.kill()
            raise


def save_dataset(
    folder: Path, shards: list[Shard], *, classes: tuple[str, ...], split: str, dataset: str
) -> None:
    """Write index.json over shards that are described; ValueError for a key that appears twice."""
    names = np.concatenate(
        [np.load(folder / f"{shard.name}.keys.npy", allow_pickle=False) for shard in shards]
    )
    found, counts = np.unique(names, return_counts=True)
    if len(found) != len(names):
        twice = found[counts > 1][0].decode()
        raise ValueError(
            f"{folder}: key {twice!r} appears in {counts.max()} samples; rename or remove all but one"
        )
    description = Description(
        dataset=dataset,
        split=split,
        classes=classes,
        num_samples=len(names),
        key_hash=key_hash(names),
        shards=tuple(shards),
        created_by=_program(),
    )
    save_index(folder, description)


def _program() -> str:
    try:
        return f"robust-bits {importlib.metadata.version('robust-bits')}"
    except importlib.metadata.PackageNotFoundError:  # run from a checkout on PYTHONPATH
        return "robust-bits"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
