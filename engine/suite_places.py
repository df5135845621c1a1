"""Where the shards of suites lie: what `--suite` and `--data` mean, what is missing there, and how to get it."""

from collections.abc import Sequence
from pathlib import Path

from data.classes import read_classes
from data.remote import is_url, join, shown
from data.suite import Suite, list_suites, load_suite, suites_called
from data.suite_folders import find_parts, find_shards, found_suites, manifest_of, names_of
from data.wnids import wnids
from engine.recipe import Recipe
from engine.sources import Access

CLEAN = "clean"
ALL = "all"
_VAL = "val"


def folder_of(recipe: Recipe, suite: Suite, own: str | None) -> tuple[str, str]:
    """The folder of the suite, or its URL, and the recipe field that named it; `own`: the entry's."""
    if own is not None:
        return own, f"suite {suite.id}:"
    if suite.id == CLEAN or suite.images == CLEAN:
        assert recipe.data.val is not None, "checked with the recipe"
        return recipe.data.val, "data.val"
    assert recipe.data.suites is not None, "checked with the recipe"
    if is_url(recipe.data.suites):
        return _in_url(recipe.data.suites, suite.id), f"suite {suite.id}:"
    root = Path(recipe.data.suites)
    found = _find(root, suite.id)
    if found is None:
        raise ValueError(f"suite {suite.id}: {_missing(root, suite.id)}")
    return str(found), f"suite {suite.id}:"


def locate(
    names: Sequence[str], recipe: Recipe, root: str | Path | None, access: Access | None = None
) -> list[dict[str, str]]:
    """Entries of the suites `names` for the shards in `root` (--data), a folder or a URL: of shards for a single
    suite, or of a folder of shards per suite. `all` is every suite found in a folder, after the clean images.

    Without `root` the recipe's own places count.
    """
    place = recipe.data.suites if root is None else str(root)
    wanted = _expand(names, recipe, place)
    alone = len(wanted) == 1
    if root is None:
        return [_own_entry(name, recipe) for name in wanted]
    if is_url(root):
        return [_remote_entry(name, recipe, str(root), access or Access(), alone=alone) for name in wanted]
    return [_entry(name, recipe, Path(root), alone=alone) for name in wanted]


def missing_suites(root: str | Path | None, found: Sequence[str]) -> list[str]:
    """A line for each of ImageNet's sets that is not among `found`: what it is called, and how to get it."""
    return [
        f"{suite.id:<22} not in {root}; {suite.get or suite.make}"
        for suite in list_suites()
        if suite.is_imagenet and suite.id not in found and not (suite.id == "imagenet" and CLEAN in found)
    ]


def _expand(names: Sequence[str], recipe: Recipe, place: str | None) -> list[str]:
    if ALL not in names:
        known = [suites_called(name) or (name,) for name in names]
        return [
            name for called in known for name in called
        ]  # one that is named twice is refused with the entries
    if place is not None and is_url(place):
        raise ValueError(
            f"--suite all: {shown(place)} is a URL, whose folders cannot be listed; name the suites, comma-separated"
        )
    found = found_suites(Path(place)) if place is not None and Path(place).is_dir() else []
    if place is not None and "real" not in found and _is_imagenet_val(Path(place) / _VAL):
        found.append("real")
    if not found:
        raise ValueError(
            f"--suite all: no suite in {place or 'data.suites, which the recipe does not name'}; "
            "give --data ROOT, a folder with one folder of shards per suite"
        )
    has_clean = recipe.data.val is not None or CLEAN in found or _find(Path(str(place)), _VAL) is not None
    return [*([CLEAN] if has_clean else []), *(name for name in found if name != CLEAN)]


def _is_imagenet_val(folder: Path) -> bool:
    """By its class list. What cannot be read is another one's error."""
    try:
        return (folder / "index.json").is_file() and read_classes(folder) == wnids()
    except ValueError:
        return False


def _find(root: Path, name: str) -> Path | None:
    """The folder of the suite, if it holds shards: an index, or tars that get one when they are opened. ImageNet's
    validation images may lie in `val`, as the clean images of a training do."""
    if found := find_shards(root, name):
        return found
    suite = manifest_of(name)
    tars = (
        root / other for other in names_of(suite) if not suite.parts and any((root / other).glob("*.tar"))
    )
    if found := next(tars, None):
        return found
    is_validation = "imagenet" in names_of(suite)
    return root / _VAL if is_validation and _is_imagenet_val(root / _VAL) else None


def _in_url(root: str, name: str) -> str:
    if root.startswith("pipe:"):
        raise ValueError(
            f"suite {name}: {root!r} is a command, which has the files of one set only; give the suite's own `data`"
        )
    return join(root, name)


def _missing(root: Path, name: str) -> str:
    found = ", ".join(found_suites(root)) if root.is_dir() else ""
    there = f"has the suites {found}" if found else "has no suite" if root.is_dir() else "does not exist"
    return f"no shards in {root / name}; {root} {there}; {_how_to_get(name)}"


def _how_to_get(name: str) -> str:
    try:
        suite = load_suite(name)
    except ValueError as error:
        return str(error)  # names the nearest known suite
    return f"get it: {suite.get}; make it: {suite.make}" if suite.get else f"make it: {suite.make}"


def _own_entry(name: str, recipe: Recipe) -> dict[str, str]:
    if name != CLEAN and recipe.data.suites is None and manifest_of(name).images != CLEAN:
        raise ValueError(
            f"--suite {name}: the run's recipe names no data.suites; give --data ROOT, a folder with one folder "
            "of shards per suite (`list suites` shows the known ones)"
        )
    return {"suite": name}


def _remote_entry(name: str, recipe: Recipe, root: str, access: Access, *, alone: bool) -> dict[str, str]:
    """The first place that has an index; a server tells of no folder what is in it."""
    suite = manifest_of(name)
    if suite.parts and not root.startswith("pipe:"):
        return {"suite": name, "data": join(root, name)}
    names = [*names_of(suite), *([_VAL] if name == CLEAN else [])]
    places = [root] * alone + [join(root, folder) for folder in names if not root.startswith("pipe:")]
    for place in places:
        if access.has_index(place):
            return {"suite": name, "data": place}
    if name == CLEAN and not alone and recipe.data.val is not None:
        return {"suite": CLEAN}
    where = (
        " nor ".join(shown(place) for place in places)
        or f"{root!r}, a command with the files of one set only"
    )
    raise ValueError(
        f"--suite {name}: no index.json in {where}; give the URL of the shards or of the folder above them, or run "
        "`shards index` where they lie"
    )


def _entry(name: str, recipe: Recipe, root: Path, *, alone: bool) -> dict[str, str]:
    suite = manifest_of(name)
    is_clean = name == CLEAN or suite.images == CLEAN
    inside = _find(root, name) or (_find(root, CLEAN) or _find(root, _VAL) if is_clean else None)
    is_shards = (root / "index.json").is_file()
    if alone and is_shards and not (suite.parts and not is_clean):
        inside = root
    if alone and inside is None and suite.parts and root.is_dir() and find_parts(root, suite):
        inside = root
    if inside is None and alone and not suite.parts and not (root.is_dir() and found_suites(root)):
        inside = root  # not shards at all: opening it says what to do
    if inside is not None:
        return {"suite": name, "data": str(inside)}
    if is_shards:
        raise ValueError(
            f"--data {root} holds the shards of one set; for several suites give the folder above it, with "
            "one folder of shards per suite"
        )
    if is_clean and not alone and recipe.data.val is not None and root.is_dir() and found_suites(root):
        return {"suite": name}
    raise ValueError(f"--suite {name}: {_missing(root, name)}")
