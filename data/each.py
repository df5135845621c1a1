"""Several image folders side by side, to be packed one by one: which there are, and which are packed already."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.index import INDEX_FILE, load_index
from data.source import list_images, natural_key
from data.verify import key_hash


class Found(NamedTuple):
    """What lies in a folder: image folders (CLASS/IMAGE in each), and the names of whatever else."""

    folders: list[Path]
    others: list[str]


def image_folders(src: Path, dst: Path) -> Found:
    """The image folders in `src`, naturally sorted. `dst` may lie in `src` and is none of them; neither are folders
    of shards. Hidden entries are not looked at. ValueError or FileNotFoundError where there is none.
    """
    if not src.is_dir():
        raise FileNotFoundError(f"no folder {src}; give the folder that holds the image folders")
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file; give a folder, or the name of a new one")
    if src.resolve() == dst.resolve():
        raise ValueError(f"{src} is SRC and DST; the shards need a folder of their own")
    entries = [path for path in _visible(src) if not dst.resolve().is_relative_to(path.resolve())]
    found = Found(
        [p for p in entries if _is_image_folder(p)], [p.name for p in entries if not _is_image_folder(p)]
    )
    if not found.folders and _is_image_folder(src):
        raise ValueError(f"{src} is one image folder, its folders hold the images; leave out --each")
    if not found.folders:
        raise ValueError(f"{src} has no image folders; expected {src}/NAME/CLASS/IMAGE")
    return found


def is_packed(src: Path, dst: Path) -> bool:
    """Whether `dst` holds shards of the image folder `src`: the same classes, names and number of bytes.

    False where it has no index. ValueError where it holds something else, or shards that do not fit their index.
    """
    if not (dst / INDEX_FILE).exists():
        return False
    source, index = list_images(src, split=src.name), load_index(dst)
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
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: natural_key(path.name))


def _is_image_folder(folder: Path) -> bool:
    """Whether some folder in it holds files, and is no folder of shards: looks at names alone."""
    if not folder.is_dir():
        return False
    classes = (path for path in _visible(folder) if path.is_dir() and not (path / INDEX_FILE).exists())
    return any(path.is_file() for a_class in classes for path in a_class.iterdir() if path.name[0] != ".")
