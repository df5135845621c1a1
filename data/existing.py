"""An index for tars that somebody else wrote: every sample is decoded once, the tars stay as they are."""

import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from data.classes import read_classes, some
from data.description import INDEX_FILE, Description, Shard, read_description
from data.hub import Tars, class_file, find_tars
from data.index import DatasetIndex, load_index
from data.records import Row, describe_shard, save_dataset, shard_workers, to_row
from data.tar import Member, scan
from data.watch import Nobody, Watch

_IMAGE_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_MAX_LABEL_BYTES: Final = 1 << 20  # of a .cls or .json member
_MAX_IMAGE_BYTES: Final = 1 << 28  # twice what MAX_PIXELS take uncompressed


class Options(NamedTuple):
    """How shards are read. `classes`: names that a label may be given as."""

    classes: tuple[str, ...] | None = None
    decode: bool = True
    allow_no_end: bool = False


class Indexed(NamedTuple):
    shard: Shard
    not_read: Counter[str]  # extension -> number of members


def index_existing(
    src: str | Path,
    *,
    into: str | Path | None = None,
    split: str | None = None,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    num_workers: int = 0,
    decode: bool = True,
    allow_no_end: bool = False,
    watch: Watch | None = None,
) -> DatasetIndex:
    """Write the index of the webdataset tars in `src`: images with a `.cls`, or a `.json` that has a `label`; other
    members are counted and not read.

    Labels are numbers, or names of the class list: `classes`, else `classes.txt` or `classnames.txt` beside the tars,
    one a line, else that of an older index; without any, classes are named by their numbers. Data set and split come
    from the arguments, the older index, or the names of folder and first shard. Notes in timm's `_info.json` must
    agree. `into`: a folder for index and links to the tars, where `src` may not be written or holds several splits.
    ValueError naming shard and key for whatever training could stumble over; then what was there before stays.
    """
    src, into = Path(src), Path(src if into is None else into)
    options = Options(None if classes is None else tuple(classes), decode, allow_no_end)
    tars = find_tars(src, split=split)
    if into.resolve() != src.resolve():
        _check_into(into)
        into.mkdir(parents=True, exist_ok=True)
    elif not tars.is_all:
        raise ValueError(
            f"{src} holds other shards beside those of {split}; give a folder for the index: shards index {src} DST"
        )
    _write(src, into, tars, options, split, dataset, num_workers, watch or Nobody())
    return load_index(into)


def write_index(
    dst: Path,
    into: Path,
    *,
    split: str | None = None,
    dataset: str | None = None,
    num_workers: int = 0,
    watch: Watch | None = None,
) -> None:
    """Put the index of the tars in `dst` into folder `into`, without links; otherwise as `index_existing`."""
    tars = find_tars(dst, split=split)
    _write(dst, into, tars, Options(), split, dataset, num_workers, watch or Nobody(), links=False)


def _write(
    src: Path,
    into: Path,
    tars: Tars,
    options: Options,
    split: str | None,
    dataset: str | None,
    num_workers: int,
    watch: Watch,
    links: bool = True,
) -> None:
    before = _older_index(into)
    options = options._replace(classes=options.classes or _class_list(src, before))
    stem = tars.paths[0].stem.rstrip("0123456789").rstrip("-_.")
    staged = _stage(into)
    try:
        shards = _index_shards(tars, staged, options, num_workers, watch)
        save_dataset(
            staged,
            shards,
            classes=_checked_classes(staged, shards, options.classes, src),
            split=split or (before.split if before else stem or src.name),
            dataset=dataset or (before.dataset if before else src.resolve().name),
        )
        if links and into.resolve() != src.resolve():
            for path in tars.paths:
                (staged / path.name).symlink_to(path.resolve())
        _put_in_place(staged, into)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check_into(into: Path) -> None:
    if into.exists() and not into.is_dir():
        raise ValueError(f"{into} is a file; give a folder, or the name of a new one")
    if into.exists() and any(into.iterdir()) and not (into / INDEX_FILE).is_file():
        raise ValueError(f"{into} is not empty; choose another folder for the index")


def _stage(into: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".index.partial-", dir=into))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ValueError(
            f"{into} cannot be written; give a folder for the index, which links to the shards: shards index {into} DST"
        ) from None


def _class_list(src: Path, before: Description | None) -> tuple[str, ...] | None:
    path = class_file(src)
    if path is not None:
        return read_classes(path)
    return before.classes if before else None


def _index_shards(tars: Tars, staged: Path, options: Options, num_workers: int, watch: Watch) -> list[Shard]:
    shards: list[Shard] = []
    not_read: Counter[str] = Counter()
    with shard_workers(num_workers) as run:
        function = partial(_index_shard, staged=staged, options=options)
        for path, indexed in zip(tars.paths, run(function, tars.paths), strict=True):
            expected = tars.lengths.get(path.name, indexed.shard.num_samples)
            if indexed.shard.num_samples != expected:
                raise ValueError(
                    f"shard {path.name} holds {indexed.shard.num_samples} samples, the folder's notes say "
                    f"{expected}; fetch it again"
                )
            shards.append(indexed.shard)
            not_read += indexed.not_read
            watch.advance(len(shards), len(tars.paths), "shards")
    if not_read:
        kinds = [f"{count} {extension}" for extension, count in sorted(not_read.items())]
        watch.say(
            f"{tars.paths[0].parent}: members that are neither images nor labels stay unread: {some(kinds)}"
        )
    return shards


def _put_in_place(staged: Path, dst: Path) -> None:
    (dst / INDEX_FILE).unlink(missing_ok=True)  # it describes arrays that change now
    for path in (*sorted(staged.glob("*.npy")), *sorted(staged.glob("*.tar"))):
        path.replace(dst / path.name)
    (staged / INDEX_FILE).replace(dst / INDEX_FILE)


def _older_index(dst: Path) -> Description | None:
    """An older index keeps its names when it is written again: they are part of the data set's id."""
    try:
        return read_description(dst)
    except (ValueError, FileNotFoundError):
        return None


def _index_shard(path: Path, *, staged: Path, options: Options) -> Indexed:
    samples, not_read = _group(path, options)
    if not samples:
        raise ValueError(f"shard {path.name} holds no samples; remove it")
    rows: list[Row] = []
    places = {name: number for number, name in enumerate(options.classes or ())}
    with path.open("rb", buffering=0) as file:
        for name, (image, label) in samples.items():
            where = f"shard {path.name}, key {name!r}"
            if image.size > _MAX_IMAGE_BYTES:
                raise ValueError(f"{where}: the image member has {image.size} bytes; remove it")
            content = os.pread(file.fileno(), image.size, image.offset)
            if label.size > _MAX_LABEL_BYTES:
                raise ValueError(f"{where}: the label member has {label.size} bytes; correct it")
            number = _parse_label(os.pread(file.fileno(), label.size, label.offset), label, where, places)
            rows.append(to_row(content, image.offset, number, source=where, decode=options.decode))
    return Indexed(describe_shard(path, rows, list(samples), folder=staged), not_read)


def _group(path: Path, options: Options) -> tuple[dict[str, tuple[Member, Member]], Counter[str]]:
    """Members by key, whatever their order. The key ends at the last dot before a known extension."""
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    notes: dict[str, Member] = {}
    not_read: Counter[str] = Counter()
    for member in scan(path, require_end=not options.allow_no_end):
        name, _, extension = member.name.removeprefix("./").rpartition(".")
        if extension.lower() in _IMAGE_EXTENSIONS:
            if name in images:
                raise ValueError(f"shard {path.name}: key {name!r} has two images; keep one")
            images[name] = member
        elif extension in ("cls", "json"):
            found = labels if extension == "cls" else notes
            if name in found:  # a.cls and ./a.cls
                raise ValueError(f"shard {path.name}: key {name!r} has two .{extension}; keep one")
            found[name] = member
        else:
            not_read[f".{extension}" if name else "without extension"] += 1
    labels = {name: notes[name] for name in images.keys() & notes.keys()} | labels
    for name in sorted(images.keys() ^ labels.keys()):
        missing = "label (.cls)" if name in images else "image"
        raise ValueError(
            f"shard {path.name}: key {name!r} has no {missing}; was the shard cut? make it again"
        )
    return {name: (image, labels[name]) for name, image in images.items()}, not_read


def _parse_label(content: bytes, member: Member, where: str, places: dict[str, int]) -> int:
    text = content.strip().decode("utf-8", "replace")
    if member.name.endswith(".json"):
        text = _label_in_json(content, where)
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if text in places:
        return places[text]
    rule = "is not a whole number from 0" + (" nor in the class list" if places else "")
    remedy = "correct one of the two" if places else "correct it, or give the class list with --classes"
    raise ValueError(f"{where}: the label {text[:20]!r} {rule}; {remedy}")


def _label_in_json(content: bytes, where: str) -> str:
    try:
        notes = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(f"{where}: its .json cannot be read; correct it") from None
    if not isinstance(notes, dict) or "label" not in notes:
        raise ValueError(f"{where}: neither a .cls nor a label in its .json; add a .cls")
    return str(notes["label"])


def _checked_classes(
    staged: Path, shards: list[Shard], classes: tuple[str, ...] | None, src: Path
) -> tuple[str, ...]:
    largest = {shard.name: int(np.load(staged / f"{shard.name}.idx.npy")["label"].max()) for shard in shards}
    if classes is None:
        return tuple(str(label) for label in range(max(largest.values()) + 1))
    for name, label in largest.items():
        if label >= len(classes):
            raise ValueError(
                f"shard {name} holds label {label}, outside 0..{len(classes) - 1}; correct the .cls member, "
                f"or name all classes in {src / 'classes.txt'}"
            )
    return classes
