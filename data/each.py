"""Several image folders, side by side or deeper, to be packed one by one: which there are, which are packed already."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.description import INDEX_FILE
from data.index import load_index
from data.source import is_ignored, list_images, natural_key
from data.verify import key_hash


class Found(NamedTuple):
    """What lies in a folder: image folders (CLASS/IMAGE in each), and whatever else."""

    folders: list[Path]
    others: list[Path]


def image_folders(src: Path, dst: Path, *, depth: int = 1) -> Found:
    """The image folders at most `depth` levels below `src` (ImageNet-C's CORRUPTION/SEVERITY: 2), naturally sorted.

    `dst` may lie in `src` and is none of them; neither are folders of shards. Hidden entries are not looked at.
    ValueError or FileNotFoundError where there is none.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"no folder {src}; give the folder that holds the image folders")
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file; give a folder, or the name of a new one")
    if src.resolve() == dst.resolve():
        raise ValueError(f"{src} is SRC and DST; the shards need a folder of their own")
    found = Found([], [])
    _collect(src, dst, depth, found)
    if not found.folders and _is_image_folder(src):
        raise ValueError(f"{src} is one image folder, its folders hold the images; leave out --each")
    if not found.folders:
        expected = "/".join(["NAME"] * depth)
        raise ValueError(
            f"{src} has no image folders; expected {src}/{expected}/CLASS/IMAGE{_deeper(src, depth)}"
        )
    return found


def _collect(folder: Path, dst: Path, depth: int, found: Found) -> None:
    for entry in _visible(folder):
        if dst.resolve().is_relative_to(entry.resolve()):
            continue
        if _is_image_folder(entry):
            found.folders.append(entry)
        elif depth > 1 and _is_plain_folder(entry):
            _collect(entry, dst, depth - 1, found)
        else:
            found.others.append(entry)


def _deeper(src: Path, depth: int) -> str:
    """A hint where the next level has what was looked for."""
    below = (entry for entry in _visible(src) if _is_plain_folder(entry))
    for _ in range(depth - 1):
        below = (entry for parent in list(below) for entry in _visible(parent) if _is_plain_folder(entry))
    has = any(_is_image_folder(entry) for parent in below for entry in _visible(parent))
    return f"; --depth {depth + 1} finds some" if has else ""


def is_packed(src: Path, dst: Path, *, classes: Sequence[str] | None = None) -> bool:
    """Whether `dst` holds shards of the image folder `src`: the same classes, names and number of bytes.

    False where it has no index. ValueError where it holds something else, or shards that do not fit their index.
    """
    if not (dst / INDEX_FILE).exists():
        return False
    source, index = list_images(src, split=None, classes=classes), load_index(dst)
    num_bytes = sum(int(index.records(shard)["size"].sum()) for shard in range(len(index.shards)))
    there = (index.classes, index.num_samples, index.description.key_hash, num_bytes)
    names = np.array([image.name.encode() for image in source.images])
    wanted = (source.classes, len(names), key_hash(names), sum(image.num_bytes for image in source.images))
    if there != wanted:
        raise ValueError(
            f"{dst} holds other images ({index.num_samples}) than {src} ({len(names)}); remove it to pack these, "
            "or choose another DST"
        )
    return True


def _visible(folder: Path) -> list[Path]:
    paths = (path for path in folder.iterdir() if not is_ignored(path.name))
    return sorted(paths, key=lambda path: natural_key(path.name))


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not (path / INDEX_FILE).exists()


def _is_image_folder(folder: Path) -> bool:
    """Whether some folder in it holds files, and is no folder of shards: looks at names alone."""
    if not folder.is_dir():
        return False
    classes = (path for path in _visible(folder) if _is_plain_folder(path))
    return any(
        path.is_file() for a_class in classes for path in a_class.iterdir() if not is_ignored(path.name)
    )
