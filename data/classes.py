"""Class lists from outside: which label a class folder has when the folders alone do not say it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data.description import INDEX_FILE, read_description
from data.wnids import LISTS, wnids

_WNID: Final = re.compile(r"(n\d{8})(?:\s.*)?")  # ImageNet's own lists put words behind it
_NUM_NAMED: Final = 5


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The class list of the shards in folder `path` (or of their index.json), or a text file with one class a line.

    A line's place is the class's label. Of `n01440764 tench` the wnid counts. `imagenet`, `a` and `r` are known lists
    (data.wnids), unless something of that name is there. ValueError for a list that is empty, has
    an empty line or names a class twice; FileNotFoundError where nothing is.
    """
    path = Path(path)
    if path.is_dir():
        return read_description(path).classes
    if str(path) in LISTS and not path.exists():
        return wnids(str(path))
    if path.name == INDEX_FILE:
        return read_description(path.parent).classes
    if not path.is_file():
        raise FileNotFoundError(
            f"no class list {path}; give a text file with one class a line, a folder of shards, or {', '.join(LISTS)}"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; give a text file with one class a line") from None
    while lines and not lines[-1]:
        lines.pop()
    return _checked(tuple(_class_of(line) for line in lines), path)


def label_folders(folders: Sequence[str], classes: Sequence[str], *, where: str) -> dict[str, int]:
    """Folder name -> label. Folders are named by class, or by label as ImageNet-V2's `0` to `999` are.

    ValueError for folders that are neither; `where` names the place.
    """
    places = {name: label for label, name in enumerate(classes)}
    if all(_is_number(name) for name in folders) and not any(_is_number(name) for name in classes):
        places = {str(label): label for label in range(len(classes))}
    if unknown := [name for name in folders if name not in places]:
        raise ValueError(
            f"{where} has {len(unknown)} folders that are not in the class list: {some(unknown)}; "
            "move them away, or give the list that has them"
        )
    return {name: places[name] for name in folders}


def check_numbers(folders: Sequence[str], *, where: str) -> None:
    """ValueError where the folders are numbers and one is missing between them: labels behind it would be wrong."""
    if not all(_is_number(name) for name in folders):
        return
    numbers = {int(name) for name in folders}
    if gap := sorted(set(range(min(numbers), max(numbers) + 1)) - numbers):
        raise ValueError(
            f"{where} has folders {min(numbers)} to {max(numbers)}, but {some([str(n) for n in gap])} missing; "
            "unpack it again, or give the class list with --classes"
        )


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _class_of(line: str) -> str:
    found = _WNID.fullmatch(line)
    return found[1] if found else line


def _checked(classes: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if not classes:
        raise ValueError(f"{path} names no class; write one a line")
    if "" in classes:
        raise ValueError(f"{path}, line {classes.index('') + 1}: empty; write one class a line")
    if len(set(classes)) < len(classes):
        twice = next(name for number, name in enumerate(classes) if name in classes[:number])
        raise ValueError(f"{path} names class {twice!r} twice; remove one")
    return classes
