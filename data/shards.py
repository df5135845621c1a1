"""Making shards and their index: an ImageFolder tree, or tars that somebody else wrote, to what `load_index`
opens.

Shards are plain tars of `key.jpg|png|webp` and `key.cls` that any webdataset reader understands; only the
index is ours. Samples are shuffled over all shards once, so that a reader who takes shards one by one sees
all classes too."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from data.decode import inspect
from data.index import (
    FLAG_CMYK,
    FLAG_GRAY,
    FLAG_PROGRESSIVE,
    FLAG_ROTATED,
    FORMATS,
    INDEX_FILE,
    RECORD,
    DatasetIndex,
    Description,
    Shard,
    load_index,
    read_description,
    save_index,
)
from data.order import hash64
from data.source import SourceImage, list_images
from data.tar import Member, Writer, scan
from data.verify import Report, info, key_hash, verify
from data.workers import start_worker, worker_context

__all__ = ["Report", "index_existing", "info", "make", "verify"]

CLASSES_FILE: Final = "classes.txt"
_IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_EXTENSION_OF: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_MAX_SIDE: Final = 65535

Task = TypeVar("Task")
Row = tuple[int, int, int, int, int, int, int]  # RECORD's fields in order


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
    num_workers: int = 0,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
) -> DatasetIndex:
    """Pack the ImageFolder tree `src` (or its `split` folder) into shards and an index in folder `dst`.

    A shard closes at `samples_per_shard` samples or `max_bytes` image bytes. Equal files and settings give
    equal bytes whatever `num_workers` is. Every image is decoded once. `dst` appears when all is done: an
    interrupted run leaves at most a `.partial` folder beside it. ValueError for files that are no images and
    for a `dst` with content."""
    src, dst = Path(src), Path(dst)
    _check_settings(
        dst, split=split, samples_per_shard=samples_per_shard, max_bytes=max_bytes, overwrite=overwrite
    )
    source = list_images(src, split=split, classes=classes)
    order = np.argsort(hash64(seed, "shards", np.arange(len(source.images))), kind="stable")
    groups = _cut([source.images[i] for i in order], samples_per_shard, max_bytes)
    with _whole_folder(dst) as folder:
        tasks = [
            ShardTask(folder / f"{split}-{number:06d}.tar", images) for number, images in enumerate(groups)
        ]
        shards = _map(_write_shard, tasks, num_workers)
        _save(folder, shards, classes=source.classes, split=split, dataset=dataset or src.resolve().name)
    return load_index(dst)


def index_existing(
    dst: str | Path, *, split: str | None = None, dataset: str | None = None, num_workers: int = 0
) -> DatasetIndex:
    """Write the index of the webdataset tars that lie in `dst` (images and `.cls` members; other members are
    ignored).

    Class names come from `classes.txt`, one per line, else from an older index, else they are the labels; data set
    and split from the arguments, the older index, or the names of folder and first shard. ValueError naming shard
    and key for whatever training could stumble over.
    """
    dst = Path(dst)
    paths = sorted(dst.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"no *.tar files in {dst}; give the folder that holds the shards")
    before = _describe_before(dst)
    (dst / INDEX_FILE).unlink(missing_ok=True)  # it describes arrays that are about to change
    shards = _map(_index_shard, paths, num_workers)
    stem = paths[0].stem.rstrip("0123456789").rstrip("-_.")
    _save(
        dst,
        shards,
        classes=_read_classes(dst, shards, before),
        split=split or (before.split if before else stem or dst.name),
        dataset=dataset or (before.dataset if before else dst.resolve().name),
    )
    return load_index(dst)


def _describe_before(dst: Path) -> Description | None:
    """An older index keeps its names when it is written again: they are part of the data set's id."""
    try:
        return read_description(dst)
    except (ValueError, FileNotFoundError):
        return None


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
        raise ValueError(f"{dst} is not empty; choose another folder or allow overwriting it")


@contextmanager
def _whole_folder(dst: Path) -> Iterator[Path]:
    """A temporary folder beside `dst` that takes its place when the block ends well and vanishes
    otherwise."""
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


def _map(function: Callable[[Task], Shard], tasks: Iterable[Task], num_workers: int) -> list[Shard]:
    if num_workers == 0:
        return [function(task) for task in tasks]
    with ProcessPoolExecutor(num_workers, mp_context=worker_context(), initializer=start_worker) as pool:
        return list(pool.map(function, tasks))


def _write_shard(task: ShardTask) -> Shard:
    rows: list[Row] = []
    with task.path.open("wb") as file:
        writer = Writer(file)
        for image in task.images:
            content = image.path.read_bytes()
            row = _row(content, 0, image.label, source=str(image.path))
            offset = writer.add(f"{image.name}.{_EXTENSION_OF[FORMATS[row[5] & 3]]}", content)
            writer.add(f"{image.name}.cls", str(image.label).encode())
            rows.append((offset, *row[1:]))
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    return _describe(task.path, rows, [image.name for image in task.images])


def _index_shard(path: Path) -> Shard:
    samples = _group(path)
    if not samples:
        raise ValueError(f"shard {path.name} holds no samples; remove it")
    rows: list[Row] = []
    with path.open("rb", buffering=0) as file:
        for name, (image, label) in samples.items():
            where = f"shard {path.name}, key {name!r}"
            content = os.pread(file.fileno(), image.size, image.offset)
            number = _parse_label(os.pread(file.fileno(), label.size, label.offset), where)
            rows.append(_row(content, image.offset, number, source=where))
    return _describe(path, rows, list(samples))


def _group(path: Path) -> dict[str, tuple[Member, Member]]:
    """Members by key, whatever their order in the tar. The key ends at the last dot before a known
    extension."""
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
    for name in images.keys() ^ labels.keys():
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


def _row(content: bytes, offset: int, label: int, *, source: str) -> Row:
    try:
        header = inspect(content)
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


def _describe(path: Path, rows: list[Row], names: list[str]) -> Shard:
    """Write the two arrays beside the shard and describe all three."""
    hashes = []
    for suffix, array in (
        ("idx", np.array(rows, dtype=RECORD)),
        ("keys", np.array([name.encode() for name in names])),
    ):
        target = path.with_name(f"{path.name}.{suffix}.npy")
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_classes(dst: Path, shards: list[Shard], before: Description | None) -> tuple[str, ...]:
    path = dst / CLASSES_FILE
    if path.is_file():
        return tuple(path.read_text(encoding="utf-8").splitlines())
    if before:
        return before.classes
    largest = max(int(np.load(dst / f"{shard.name}.idx.npy")["label"].max()) for shard in shards)
    return tuple(str(label) for label in range(largest + 1))


def _save(folder: Path, shards: list[Shard], *, classes: tuple[str, ...], split: str, dataset: str) -> None:
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
