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
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from data.existing import index_existing
from data.index import FLAG_FORMAT, FORMATS, DatasetIndex, Shard, load_index
from data.order import hash64
from data.records import Row, describe_shard, map_shards, save_dataset, to_row
from data.source import SourceImage, list_images
from data.tar import Writer
from data.verify import Report, info, verify

__all__ = ["Report", "index_existing", "info", "make", "verify"]

_EXTENSION_OF: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MOST_WORKERS: Final = 2  # where the caller leaves the number open
_WORTH_WORKERS: Final = 50_000_000  # image bytes: one process decodes them while the workers still start


class Sample(NamedTuple):
    """One image to write; `source` is what an error about it names."""

    name: str  # string key
    label: int
    content: bytes
    source: str


class ShardTask(NamedTuple):
    """One shard to write."""

    path: Path
    images: list[SourceImage]


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
) -> DatasetIndex:
    """Pack the ImageFolder tree `src` (or its `split` folder) into shards and an index in folder `dst`.

    A shard closes at `samples_per_shard` samples or `max_bytes` image bytes. Equal files and settings give
    equal bytes whatever `num_workers` is (None: two, or none where there is little to do). Every image is
    decoded once. `dst` appears when all is done: an interrupted run leaves at most a `.partial` folder beside
    it. ValueError for files that are no images and for a `dst` with content.
    """
    src, dst = Path(src), Path(dst)
    _check_settings(
        dst, split=split, samples_per_shard=samples_per_shard, max_bytes=max_bytes, overwrite=overwrite
    )
    source = list_images(src, split=split, classes=classes)
    order = np.argsort(hash64(seed, "shards", np.arange(len(source.images))), kind="stable")
    groups = _cut([source.images[i] for i in order], samples_per_shard, max_bytes)
    with whole_folder(dst) as folder:
        tasks = [
            ShardTask(folder / f"{split}-{number:06d}.tar", images) for number, images in enumerate(groups)
        ]
        shards = map_shards(_pack_shard, tasks, _workers(groups) if num_workers is None else num_workers)
        save_dataset(
            folder, shards, classes=source.classes, split=split, dataset=dataset or src.resolve().name
        )
    return load_index(dst)


def _check_settings(
    dst: Path, *, split: str, samples_per_shard: int, max_bytes: int, overwrite: bool
) -> None:
    if Path(split).name != split or split in ("", ".", ".."):
        raise ValueError(f"split {split!r} is part of file names; use a plain name such as train")
    for name, value in (("samples_per_shard", samples_per_shard), ("max_bytes", max_bytes)):
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
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
        if dst.exists() and any(dst.iterdir()):
            replaced = Path(tempfile.mkdtemp(prefix=f".{dst.name}.replaced-", dir=dst.parent))
            dst.rename(replaced)
            folder.rename(dst)
            shutil.rmtree(replaced)
        else:
            folder.rename(dst)
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


def _pack_shard(task: ShardTask) -> Shard:
    return write_shard(
        task.path,
        (
            Sample(image.name, image.label, image.path.read_bytes(), source=str(image.path))
            for image in task.images
        ),
    )


def write_shard(path: Path, samples: Iterable[Sample]) -> Shard:
    """Write one tar and its arrays; every image is decoded once. ValueError naming the source of one that cannot be."""
    rows: list[Row] = []
    names: list[str] = []
    with path.open("wb") as file:
        writer = Writer(file)
        for sample in samples:
            row = to_row(sample.content, 0, sample.label, source=sample.source)
            extension = _EXTENSION_OF[FORMATS[row[5] & FLAG_FORMAT]]
            offset = writer.add(f"{sample.name}.{extension}", sample.content)
            writer.add(f"{sample.name}.cls", str(sample.label).encode())
            rows.append((offset, *row[1:]))
            names.append(sample.name)
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    return describe_shard(path, rows, names)
