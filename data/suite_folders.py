"""Where the shards of suites lie: a folder per suite, named by its id or another name of it; of a suite with parts a
folder per part. Looks at names alone, and imports nothing heavy.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from data.suite import EVERY, Suite, is_suite_name, list_suites, load_suite, own_suite

SPLITS: Final = (
    "train",
    "val",
)  # lie beside the suites where `shards make --each` packed all; `val` is `clean`
_INDEX_FILE: Final = "index.json"  # data.index has this name too, but would import hashes and arrays for it
_LEVEL: Final = re.compile(r"\D*(\d+)")  # 3, severity_3


class PartFolder(NamedTuple):
    """One part of a suite. `name`: KIND, or KIND/SEVERITY."""

    name: str
    folder: Path


def find_shards(root: Path, id: str) -> Path | None:
    """The folder of suite `id` in `root`, when it holds an index or, of a suite with parts, a part; else None."""
    return _shards_of(root, manifest_of(id))


def _shards_of(root: Path, suite: Suite) -> Path | None:
    for name in () if suite.on_the_fly else names_of(suite):  # it has no folder: `all` leaves it out
        if suite.parts and find_parts(root / name, suite):
            return root / name
        if (root / name / _INDEX_FILE).is_file() and not suite.parts:
            return root / name
    return None


def found_suites(root: Path) -> list[str]:
    """Ids of the suites whose shards lie in `root`, in the order of `list_suites`, then the other folders of shards by
    name. The splits of a training are none, nor is what an interrupted `shards make` left behind (hidden folders).
    """
    known = list_suites()
    found = [suite.id for suite in known if _shards_of(root, suite) is not None]
    taken = {name for suite in known for name in names_of(suite)} | set(SPLITS)
    there = (entry.name for entry in root.iterdir() if is_suite_name(entry.name))
    others = [name for name in there if name not in taken and (root / name / _INDEX_FILE).is_file()]
    return found + sorted(others)


def find_parts(folder: Path, suite: Suite) -> list[PartFolder]:
    """The parts that lie in the suite's `folder`, in the manifest's order: KIND/SEVERITY, or GROUP/KIND/SEVERITY as the
    archives of ImageNet-C are called."""
    found: list[PartFolder] = []
    for group, kinds in suite.parts.items():
        for kind in _kinds_in(folder, kinds):
            place = next((p for p in (folder / kind, folder / group / kind) if p.is_dir()), None)
            if place is not None:
                found += _levels(place, kind, suite.severities)
    return found


def wanted_parts(suite: Suite) -> list[str]:
    """Names of all parts of a whole one; none where any folder is a part."""
    if EVERY in suite.kinds:
        return []
    if not suite.severities:
        return list(suite.kinds)
    return [f"{kind}/{level}" for kind in suite.kinds for level in range(1, suite.severities + 1)]


def names_of(suite: Suite) -> tuple[str, ...]:
    """Names that its folder may have. A set that judges another one's images lies where those lie."""
    names = (suite.id, *suite.folders)
    return names if suite.images is None else names + names_of(load_suite(suite.images))


def manifest_of(id: str) -> Suite:
    """The suite's manifest, or the default one for somebody's own images."""
    try:
        return load_suite(id)
    except ValueError as error:
        if "is unknown" in str(error):
            return own_suite(id)
        raise


def _kinds_in(folder: Path, kinds: tuple[str, ...]) -> Iterator[str]:
    for kind in kinds:
        if kind != EVERY:
            yield kind
        elif folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir() if is_suite_name(path.name))


def _levels(place: Path, kind: str, severities: int) -> Iterator[PartFolder]:
    if not severities:
        if (place / _INDEX_FILE).is_file():
            yield PartFolder(kind, place)
        return
    by_level = {
        int(number[1]): path
        for path in place.iterdir()
        if (number := _LEVEL.fullmatch(path.name)) is not None
    }
    for level in range(1, severities + 1):
        if level in by_level and (by_level[level] / _INDEX_FILE).is_file():
            yield PartFolder(f"{kind}/{level}", by_level[level])
