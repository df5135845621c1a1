"""An index for tars that somebody else wrote: every sample is decoded once, the tars stay as they are."""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from data.index import INDEX_FILE, DatasetIndex, Description, Shard, load_index, read_description
from data.records import Row, describe_shard, map_shards, save_dataset, to_row
from data.tar import Member, scan

CLASSES_FILE: Final = "classes.txt"
_IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})


def index_existing(
    dst: str | Path, *, split: str | None = None, dataset: str | None = None, num_workers: int = 0
) -> DatasetIndex:
    """Write the index of the webdataset tars in `dst`: images and `.cls` members; others are ignored.

    Class names come from `classes.txt`, one per line, else from an older index, else they are the labels;
    data set and split from the arguments, the older index, or the names of folder and first shard. ValueError
    naming shard and key for whatever training could stumble over; then what was there before stays as it is.
    """
    write_index(Path(dst), Path(dst), split=split, dataset=dataset, num_workers=num_workers)
    return load_index(dst)


def write_index(
    dst: Path, into: Path, *, split: str | None = None, dataset: str | None = None, num_workers: int = 0
) -> None:
    """Put the index of the tars in `dst` into folder `into`; otherwise as `index_existing`."""
    paths = sorted(dst.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"no *.tar files in {dst}; give the folder that holds the shards")
    before = _older_index(dst)
    stem = paths[0].stem.rstrip("0123456789").rstrip("-_.")
    staged = Path(tempfile.mkdtemp(prefix=".index.partial-", dir=into))
    try:
        shards = map_shards(partial(_index_shard, staged=staged), paths, num_workers)
        save_dataset(
            staged,
            shards,
            classes=_read_classes(dst, staged, shards, before),
            split=split or (before.split if before else stem or dst.name),
            dataset=dataset or (before.dataset if before else dst.resolve().name),
        )
        _put_in_place(staged, into)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _put_in_place(staged: Path, dst: Path) -> None:
    (dst / INDEX_FILE).unlink(missing_ok=True)  # it describes arrays that change now
    for path in sorted(staged.glob("*.npy")):
        path.replace(dst / path.name)
    (staged / INDEX_FILE).replace(dst / INDEX_FILE)


def _older_index(dst: Path) -> Description | None:
    """An older index keeps its names when it is written again: they are part of the data set's id."""
    try:
        return read_description(dst)
    except (ValueError, FileNotFoundError):
        return None


def _index_shard(path: Path, *, staged: Path) -> Shard:
    samples = _group(path)
    if not samples:
        raise ValueError(f"shard {path.name} holds no samples; remove it")
    rows: list[Row] = []
    with path.open("rb", buffering=0) as file:
        for name, (image, label) in samples.items():
            where = f"shard {path.name}, key {name!r}"
            content = os.pread(file.fileno(), image.size, image.offset)
            number = _parse_label(os.pread(file.fileno(), label.size, label.offset), where)
            rows.append(to_row(content, image.offset, number, source=where))
    return describe_shard(path, rows, list(samples), folder=staged)


def _group(path: Path) -> dict[str, tuple[Member, Member]]:
    """Members by key, whatever their order. The key ends at the last dot before a known extension."""
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    for member in scan(path):
        name, _, extension = member.name.removeprefix("./").rpartition(".")
        if extension.lower() in _IMAGE_EXTENSIONS:
            if name in images:
                raise ValueError(f"shard {path.name}: key {name!r} has two images; keep one")
            images[name] = member
        elif extension == "cls":
            labels[name] = member
    for name in sorted(images.keys() ^ labels.keys()):
        missing = "label (.cls)" if name in images else "image"
        raise ValueError(
            f"shard {path.name}: key {name!r} has no {missing}; was the shard cut? make it again"
        )
    return {name: (image, labels[name]) for name, image in images.items()}


def _parse_label(content: bytes, where: str) -> int:
    text = content.strip()
    if not (text.isdigit() and len(text) < 10):
        raise ValueError(
            f"{where}: the label {text[:20]!r} is not a whole number from 0; correct the .cls member"
        )
    return int(text)


def _read_classes(
    dst: Path, staged: Path, shards: list[Shard], before: Description | None
) -> tuple[str, ...]:
    largest = {shard.name: int(np.load(staged / f"{shard.name}.idx.npy")["label"].max()) for shard in shards}
    path = dst / CLASSES_FILE
    if path.is_file():
        classes = tuple(path.read_text(encoding="utf-8").splitlines())
    elif before:
        classes = before.classes
    else:
        return tuple(str(label) for label in range(max(largest.values()) + 1))
    for name, label in largest.items():
        if label >= len(classes):
            raise ValueError(
                f"shard {name} holds label {label}, outside 0..{len(classes) - 1}; correct the .cls member, "
                f"or name all classes in {path}"
            )
    return classes
