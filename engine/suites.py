"""Which images an evaluation entry means: a suite's shards, and how they reach the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.index import DatasetIndex
from data.remote import is_url, join, shown
from data.suite import Suite, find_shards, found_suites, load_suite, own_suite
from data.transform import EvalTransform
from engine.build import eval_transform
from engine.eval_fields import AnyEval, SuiteEval
from engine.recipe import Recipe
from engine.sources import Access, numbered, open_shards

CLEAN = "clean"
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """An opened suite."""

    suite: str
    index: DatasetIndex
    transform: EvalTransform


def open_eval_set(
    recipe: Recipe, entry: AnyEval, access: Access, *, classes: Sequence[str] | None = None
) -> EvalSet:
    """The suite of `entry`; attacks start from the clean images. ValueError or OSError for shards that are not
    there, or whose class list is not `classes`, those of the training."""
    name = entry.suite if isinstance(entry, SuiteEval) else CLEAN
    own = entry.data if isinstance(entry, SuiteEval) else None
    folder, field = _folder(recipe, name, own)
    # A stream has no class list; where data.val gave none either, its classes are numbers and can only be counted.
    is_named = recipe.data.indexed or classes is None or tuple(classes) != numbered(len(classes))
    index = open_shards(folder, access, field=field, classes=classes, by_name=is_named)
    return EvalSet(suite=name, index=index, transform=_transform(recipe, _manifest(name)))


def _folder(recipe: Recipe, name: str, own: str | None) -> tuple[str, str]:
    """The folder, or its URL, and the recipe field that named it."""
    if own is not None:
        return own, f"suite {name}:"
    if name == CLEAN:
        assert recipe.data.val is not None, "checked with the recipe"
        return recipe.data.val, "data.val"
    assert recipe.data.suites is not None, "checked with the recipe"
    if is_url(recipe.data.suites):
        return _in_url(recipe.data.suites, name), f"suite {name}:"
    root = Path(recipe.data.suites)
    if _find(root, name) is None:
        raise ValueError(f"suite {name}: {_missing(root, name)}")
    return str(root / name), f"suite {name}:"


def _in_url(root: str, name: str) -> str:
    if root.startswith("pipe:"):
        raise ValueError(
            f"suite {name}: {root!r} is a command, which has the files of one set only; give the suite's own `data`"
        )
    return join(root, name)


def _find(root: Path, name: str) -> Path | None:
    """The folder root/name, if it holds shards: an index, or tars that get one when they are opened."""
    return find_shards(root, name) or (root / name if any((root / name).glob("*.tar")) else None)


def _missing(root: Path, name: str) -> str:
    found = ", ".join(found_suites(root)) if root.is_dir() else ""
    there = f"has the suites {found}" if found else "has no suite" if root.is_dir() else "does not exist"
    return f"no shards in {root / name}; {root} {there}; {_how_to_get(name)}"


def _how_to_get(name: str) -> str:
    try:
        return f"make it: {load_suite(name).make}"
    except ValueError as error:
        return str(error)  # names the nearest known suite


def _manifest(name: str) -> Suite:
    """The suite's manifest, or the default one for somebody's own images."""
    try:
        return load_suite(name)
    except ValueError:
        return own_suite(name)


def _transform(recipe: Recipe, suite: Suite) -> EvalTransform:
    """The recipe's own evaluation transform, with what the suite's manifest prescribes in its place."""
    prescribed = {
        "eval_resize": suite.resize,
        "crop_pct": suite.crop_pct,
        "eval_interpolation": suite.interpolation,
    }
    changes = {name: value for name, value in prescribed.items() if value is not None}
    return eval_transform(recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}))


def locate(
    names: Sequence[str], recipe: Recipe, root: str | Path | None, access: Access | None = None
) -> list[dict[str, str]]:
    """Entries of the suites `names` for the shards in `root` (--data), a folder or a URL: of shards for a single
    suite, or of a folder of shards per suite. `all` is every suite found in a folder, after the clean images.

    Without `root` the recipe's own places count.
    """
    place = recipe.data.suites if root is None else str(root)
    wanted = _expand(names, place)
    alone = len(wanted) == 1
    if root is None:
        return [_own_entry(name, recipe) for name in wanted]
    if is_url(root):
        return [_remote_entry(name, recipe, str(root), access or Access(), alone=alone) for name in wanted]
    return [_entry(name, recipe, Path(root), alone=alone) for name in wanted]


def _expand(names: Sequence[str], place: str | None) -> list[str]:
    if ALL not in names:
        return list(names)
    if place is not None and is_url(place):
        raise ValueError(
            f"--suite all: {shown(place)} is a URL, whose folders cannot be listed; name the suites, comma-separated"
        )
    found = found_suites(Path(place)) if place is not None and Path(place).is_dir() else []
    if not found:
        raise ValueError(
            f"--suite all: no suite in {place or 'data.suites, which the recipe does not name'}; "
            "give --data ROOT, a folder with one folder of shards per suite"
        )
    return [CLEAN, *(name for name in found if name != CLEAN)]


def _own_entry(name: str, recipe: Recipe) -> dict[str, str]:
    if name != CLEAN and recipe.data.suites is None:
        raise ValueError(
            f"--suite {name}: the run's recipe names no data.suites; give --data ROOT, a folder with one folder "
            "of shards per suite (`list suites` shows the known ones)"
        )
    return {"suite": name}


def _remote_entry(name: str, recipe: Recipe, root: str, access: Access, *, alone: bool) -> dict[str, str]:
    """The first place that has an index; a server tells of no folder what is in it."""
    inside = [] if root.startswith("pipe:") else [name, *(["val"] if name == CLEAN else [])]
    places = [root] * alone + [join(root, folder) for folder in inside]
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
    inside = _find(root, name) or (_find(root, "val") if name == CLEAN else None)
    if (root / "index.json").is_file() and alone:
        inside = root
    if inside is None and alone and not (root.is_dir() and found_suites(root)):
        inside = root  # not shards at all: opening it says what to do
    if inside is not None:
        return {"suite": name, "data": str(inside)}
    if (root / "index.json").is_file():
        raise ValueError(
            f"--data {root} holds the shards of one set; for several suites give the folder above it, with "
            "one folder of shards per suite"
        )
    if name == CLEAN and not alone and recipe.data.val is not None and root.is_dir() and found_suites(root):
        return {"suite": CLEAN}
    raise ValueError(f"--suite {name}: {_missing(root, name)}")
