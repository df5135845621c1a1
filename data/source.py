"""An ImageFolder tree (`root[/split]/class/image`) as a flat list of labelled files, in an order all machines
share.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from data.classes import check_numbers, label_folders, some
from data.decode import sniff
from data.index import FORMATS

_ALSO_CALLED: Final = {"validation": "val", "val": "validation"}
_SYSTEM_FILES: Final = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_PAPERS: Final = ("readme", "license", "licence")  # lie beside the class folders of ImageNet-A and -R


class SourceImage(NamedTuple):
    path: Path
    name: str  # string key: class / file stem
    label: int
    num_bytes: int
    changed_ns: int  # when the file was last written


class Source(NamedTuple):
    classes: tuple[str, ...]
    images: list[SourceImage]
    num_ignored: int  # hidden and system files
    num_found: int  # classes that have a folder


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that counts digits as numbers, so folders 0..999 sort as numbers; ties fall back on the
    text.
    """
    runs = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple((0, int(run), "") if run[0] in "0123456789" else (1, 0, run) for run in runs), text


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is the system's own: hidden, or one that desktops leave everywhere."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def list_images(root: Path, *, split: str | None, classes: Sequence[str] | None = None) -> Source:
    """Files of `root/split` (validation may also be called val), or of `root` where there is none or no split.

    The label is the place of the class folder in the naturally sorted list; or in `classes` when given, which may name
    classes without a folder here, and by whose numbers folders may be called. ValueError for anything that is not an
    image in a class folder, but for hidden and system files and a README or LICENSE beside the class folders.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give the root of an ImageFolder tree")
    folder = root if split is None else _split_folder(root, split)
    entries = [entry for entry in folder.iterdir() if not is_ignored(entry.name)]
    num_ignored = sum(1 for _ in folder.iterdir()) - len(entries)
    found = sorted((entry.name for entry in entries if entry.is_dir()), key=natural_key)
    stray = sorted(entry.name for entry in entries if not entry.is_dir())
    if stray := [name for name in stray if not name.lower().startswith(_PAPERS)]:
        raise ValueError(f"{folder} holds files beside its class folders: {some(stray)}; move them away")
    if not found:
        raise ValueError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
    names = tuple(classes) if classes is not None else tuple(found)
    if classes is None:
        check_numbers(found, where=str(folder))
    labels = label_folders(found, names, where=str(folder))
    images: list[SourceImage] = []
    for name in found:
        files = sorted((folder / name).iterdir(), key=lambda path: natural_key(path.name))
        visible = [path for path in files if not is_ignored(path.name)]
        num_ignored += len(files) - len(visible)
        images += _list_class(folder / name, visible, names[labels[name]], labels[name])
    _refuse_strangers(images, folder)
    return Source(names, _unique_names(images, folder), num_ignored, len(found))


def _split_folder(root: Path, split: str) -> Path:
    candidates = [root / split, *([root / _ALSO_CALLED[split]] if split in _ALSO_CALLED else [])]
    return next((folder for folder in candidates if folder.is_dir()), root)


def _list_class(folder: Path, paths: list[Path], name: str, label: int) -> Iterator[SourceImage]:
    if not paths:
        raise ValueError(f"class folder {folder} is empty; remove it and give the class list, or fill it")
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder inside a class folder; give the folder of one split")
        # webdataset takes everything after the file name's first dot for the extension
        stem = path.stem.replace(".", "_")
        facts = path.stat()
        yield SourceImage(path, f"{name}/{stem}", label, facts.st_size, facts.st_mtime_ns)


def _refuse_strangers(images: list[SourceImage], folder: Path) -> None:
    strangers = [
        str(image.path.relative_to(folder)) for image in images if _format_of(image.path) not in FORMATS[1:]
    ]
    if strangers:
        raise ValueError(
            f"{len(strangers)} files under {folder} are not JPEG, PNG or WebP images: {some(strangers)}; "
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
