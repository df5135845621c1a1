"""Making shards: an ImageFolder tree to tars and the index that `load_index` opens.

Shards are plain tars of `key.jpg|png|webp` and `key.cls` that any webdataset reader understands; only the
index is ours. Samples are shuffled over all shards once, so that a reader who takes shards one by one sees
all classes too. The module also names the three other things one does with a folder of shards.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from data.description import Shard
from data.existing import index_existing
from data.index import FLAG_FORMAT, FORMATS, DatasetIndex, load_index
from data.info import info
from data.journal import Planned, digest_of, resumable_folder, take_place
from data.order import hash64
from data.records import Row, describe_shard, save_dataset, to_row
from data.source import Source, SourceImage, list_images
from data.tar import Writer
from data.verify import Report, verify
from data.watch import Nobody, Watch

__all__ = ["Report", "index_existing", "info", "make", "verify"]

_EXTENSION_OF: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MOST_WORKERS: Final = 2  # where the caller leaves the number open
_LAYOUT: Final = 1  # of the shards' bytes: whoever changes them counts it up
_WORTH_WORKERS: Final = 50_000_000  # image bytes: one process decodes them while the workers still start


class Sample(NamedTuple):
    """One image to write; `source` is what an error about it names."""

    name: str  # string key
    label: int
    content: bytes
    source: str


def make(
    src: str | Path,
    dst: str | Path,
    *,
    split: str,
    samples_per_shard: int = 2000,
    max_bytes: int = 400_000_000,
    seed: int = 0,
    num_workers: int | None = 0,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
    descend: bool = True,
    decode: bool = True,
    watch: Watch | None = None,
) -> DatasetIndex:
    """Pack the ImageFolder tree `src` (or, with `descend`, its `split` folder) into shards and an index in `dst`.

    A shard closes at `samples_per_shard` samples or `max_bytes` image bytes. Equal files and settings give
    equal bytes whatever `num_workers` is (None: two, or none where there is little to do). Every image is
    decoded once; without `decode` its header alone is read. `dst` appears when all is done: an interrupted call
    leaves its whole shards in a hidden folder beside it, and the same call goes on with them. ValueError for
    files that are no images and for a `dst` with content.
    """
    src, dst, watch = Path(src), Path(dst), watch or Nobody()
    _check_settings(
        dst, split=split, samples_per_shard=samples_per_shard, max_bytes=max_bytes, overwrite=overwrite
    )
    source = list_images(src, split=split if descend else None, classes=classes)
    _say_what_is_found(src, source, watch)
    order = np.argsort(hash64(seed, "shards", np.arange(len(source.images))), kind="stable")
    groups = _cut([source.images[i] for i in order], samples_per_shard, max_bytes)
    planned = [_plan(f"{split}-{n:06d}.tar", images, decode=decode) for n, images in enumerate(groups)]
    with resumable_folder(dst) as journal:
        shards = journal.write(
            planned,
            partial(_pack_shard, decode=decode),
            num_workers=_workers(groups) if num_workers is None else num_workers,
            watch=watch,
        )
        name = dataset or src.resolve().name
        save_dataset(journal.folder, shards, classes=source.classes, split=split, dataset=name)
    return load_index(dst)


def _say_what_is_found(src: Path, source: Source, watch: Watch) -> None:
    if source.num_ignored:
        watch.say(f"{src}: {source.num_ignored} hidden or system files left out")
    if source.num_found < len(source.classes):
        watch.say(f"{src}: images of {source.num_found} of {len(source.classes)} classes")


def _plan(name: str, images: list[SourceImage], *, decode: bool) -> Planned[list[SourceImage]]:
    facts = [(image.name, image.label, image.num_bytes, image.changed_ns) for image in images]
    return Planned(name, digest_of(_LAYOUT, decode, facts), len(images), images)


def _check_settings(
    dst: Path, *, split: str, samples_per_shard: int, max_bytes: int, overwrite: bool
) -> None:
    if Path(split).name != split or split in ("", ".", ".."):
        raise ValueError(f"split {split!r} is part of file names; use a plain name such as train")
    for name, value in (("samples_per_shard", samples_per_shard), ("max_bytes", max_bytes)):
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    check_place(dst, overwrite=overwrite)


def check_place(dst: Path, *, overwrite: bool = False) -> None:
    """ValueError for a `dst` that is a file, or a folder with content that may not be replaced."""
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file; give a folder that does not exist yet")
    if dst.exists() and any(dst.iterdir()) and not overwrite:
        raise ValueError(f"{dst} is not empty; choose another folder, or remove this one first")


@contextmanager
def whole_folder(dst: Path) -> Iterator[Path]:
    """A temporary folder beside `dst`: takes its place when the block ends well, vanishes otherwise."""
    dst.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dst.name}.partial-", dir=dst.parent))
    try:
        folder.chmod(0o755)  # mkdtemp makes it private
        yield folder
        take_place(folder, dst)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cut(images: list[SourceImage], samples_per_shard: int, max_bytes: int) -> list[list[SourceImage]]:
    groups: list[list[SourceImage]] = [[]]
    num_bytes = 0
    for image in images:
        if groups[-1] and (len(groups[-1]) >= samples_per_shard or num_bytes + image.num_bytes > max_bytes):
            groups.append([])
            num_bytes = 0
        groups[-1].append(image)
        num_bytes += image.num_bytes
    return groups


def _workers(groups: list[list[SourceImage]]) -> int:
    num_bytes = sum(image.num_bytes for images in groups for image in images)
    return min(_MOST_WORKERS, len(groups)) if len(groups) > 1 and num_bytes > _WORTH_WORKERS else 0


def _pack_shard(path: Path, images: list[SourceImage], *, decode: bool) -> Shard:
    samples = (
        Sample(image.name, image.label, image.path.read_bytes(), source=str(image.path)) for image in images
    )
    return write_shard(path, samples, decode=decode)


def write_shard(path: Path, samples: Iterable[Sample], *, decode: bool = True) -> Shard:
    """Write one tar, whole or not at all, and its arrays; every image is decoded once (without `decode`, opened).

    ValueError naming the source of one that cannot be.
    """
    rows: list[Row] = []
    names: list[str] = []
    # A process of a call that was killed may still write when the next call has begun: no two share a file.
    part = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with part.open("wb") as file:
            writer = Writer(file)
            for sample in samples:
                row = to_row(sample.content, 0, sample.label, source=sample.source, decode=decode)
                extension = _EXTENSION_OF[FORMATS[row[5] & FLAG_FORMAT]]
                offset = writer.add(f"{sample.name}.{extension}", sample.content)
                writer.add(f"{sample.name}.cls", str(sample.label).encode())
                rows.append((offset, *row[1:]))
                names.append(sample.name)
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        return describe_shard(path, rows, names)
    except OSError as error:
        if error.filename is None:  # of a disk that is full, for example
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        part.unlink(missing_ok=True)
