"""An ImageFolder tree (`root[/split]/class/image`) as a flat list of labelled files, in an order all machines
share.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from data.decode import sniff
from data.index import FORMATS

_ALSO_CALLED: Final = {"validation": "val", "val": "validation"}
_NUM_NAMED: Final = 5  # offending files listed in an error


class SourceImage(NamedTuple):
    path: Path
    name: str  # string key: class folder / file stem
    label: int
    num_bytes: int


class Source(NamedTuple):
    classes: tuple[str, ...]
    images: list[SourceImage]


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that counts digits as numbers, so folders 0..999 sort as numbers; ties fall back on the
    text.
    """
    runs = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple((0, int(run), "") if run[0] in "0123456789" else (1, 0, run) for run in runs), text


def list_images(root: Path, *, split: str, classes: Sequence[str] | None = None) -> Source:
    """Files of `root/split` (validation may also be called val), or of `root` where there is no such folder.

    The label is the place of the class folder in the naturally sorted list, or in `classes` when given (a
    split that lacks some classes needs that). ValueError for anything that is not an image in a class folder.
    """
    folder = _split_folder(root, split)
    found = sorted((entry.name for entry in folder.iterdir() if entry.is_dir()), key=natural_key)
    stray = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    if stray:
        raise ValueError(f"{folder} holds files beside its class folders: {_some(stray)}; move them away")
    if not found:
        raise ValueError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
    names = tuple(classes) if classes is not None else tuple(found)
    if unknown := sorted(set(found) - set(names), key=natural_key):
        raise ValueError(f"{folder} has folders that are not in the class list: {_some(unknown)}")
    images = [image for name in found for image in _list_class(folder / name, names.index(name))]
    _refuse_strangers(images, folder)
    return Source(names, _unique_names(images, folder))


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the root of an ImageFolder tree")
    candidates = [root / split, *([root / _ALSO_CALLED[split]] if split in _ALSO_CALLED else [])]
    return next((folder for folder in candidates if folder.is_dir()), root)


def _list_class(folder: Path, label: int) -> Iterator[SourceImage]:
    paths = sorted(folder.iterdir(), key=lambda path: natural_key(path.name))
    if not paths:
        raise ValueError(f"class folder {folder} is empty; remove it, or give the class list")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder inside a class folder; give the folder of one split")
        # webdataset takes everything after the file name's first dot for the extension
        stem = path.stem.replace(".", "_")
        yield SourceImage(path, f"{folder.name}/{stem}", label, path.stat().st_size)


def _refuse_strangers(images: list[SourceImage], folder: Path) -> None:
    strangers = [
        str(image.path.relative_to(folder)) for image in images if _format_of(image.path) not in FORMATS[1:]
    ]
    if strangers:
        raise ValueError(
            f"{len(strangers)} files under {folder} are not JPEG, PNG or WebP images: {_some(strangers)}; "
            f"remove or convert them"
        )


def _format_of(path: Path) -> str:
    with path.open("rb") as file:
        return sniff(file.read(16))


def _unique_names(images: list[SourceImage], folder: Path) -> list[SourceImage]:
    """a.jpg and a.png in one class get their extensions into the key; what still collides is refused."""
    counts: dict[str, int] = {}
    for image in images:
        counts[image.name] = counts.get(image.name, 0) + 1
    renamed = [
        image._replace(name=f"{image.name}_{image.path.suffix[1:].lower()}")
        if counts[image.name] > 1
        else image
        for image in images
    ]
    seen: dict[str, Path] = {}
    for image in renamed:
        if image.name in seen:
            first, second = seen[image.name].relative_to(folder), image.path.relative_to(folder)
            raise ValueError(
                f"{first} and {second} would both get the key {image.name!r}; rename one of them"
            )
        seen[image.name] = image.path
    return renamed


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
