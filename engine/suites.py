"""Which images an evaluation entry means: a suite's shards, and how they reach the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.index import DatasetIndex
from data.suite import Suite, find_shards, found_suites, load_suite, own_suite
from data.transform import EvalTransform
from engine.build import eval_transform, open_shards
from engine.fields import AttackEval, SuiteEval
from engine.recipe import Recipe

CLEAN = "clean"
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """An opened suite."""

    suite: str
    index: DatasetIndex
    transform: EvalTransform


def open_eval_set(
    recipe: Recipe, entry: SuiteEval | AttackEval, *, classes: Sequence[str] | None = None
) -> EvalSet:
    """The suite of `entry`; attacks start from the clean images. ValueError for shards that are not there, or
    whose class list is not `classes`."""
    name = entry.suite if isinstance(entry, SuiteEval) else CLEAN
    own = entry.data if isinstance(entry, SuiteEval) else None
    folder, field = _folder(recipe, name, own)
    index = open_shards(folder, field=field, classes=classes)
    return EvalSet(suite=name, index=index, transform=_transform(recipe, _manifest(name)))


def _folder(recipe: Recipe, name: str, own: str | None) -> tuple[str, str]:
    """The folder and the recipe field that named it."""
    if own is not None:
        return own, f"suite {name}:"
    if name == CLEAN:
        assert recipe.data.val is not None, "checked with the recipe"
        return recipe.data.val, "data.val"
    assert recipe.data.suites is not None, "checked with the recipe"
    root = Path(recipe.data.suites)
    if find_shards(root, name) is None:
        raise ValueError(f"suite {name}: {_missing(root, name)}")
    return str(root / name), f"suite {name}:"


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
        "interpolation": suite.interpolation,
    }
    changes = {name: value for name, value in prescribed.items() if value is not None}
    return eval_transform(recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)}))


def locate(names: Sequence[str], recipe: Recipe, root: Path | None) -> list[dict[str, str]]:
    """Entries of the suites `names` for the shards in `root` (--data): a folder of shards for a single suite, or
    of a folder of shards per suite. `all` is every suite found there, after the clean images.

    Without `root` the recipe's own places count.
    """
    place = Path(recipe.data.suites) if root is None and recipe.data.suites else root
    wanted = _expand(names, place)
    return [_entry(name, recipe, root, alone=len(wanted) == 1) for name in wanted]


def _expand(names: Sequence[str], place: Path | None) -> list[str]:
    if ALL not in names:
        return list(names)
    found = found_suites(place) if place is not None and place.is_dir() else []
    if not found:
        raise ValueError(
            f"--suite all: no suite in {place or 'data.suites, which the recipe does not name'}; "
            "give --data ROOT, a folder with one folder of shards per suite"
        )
    return [CLEAN, *(name for name in found if name != CLEAN)]


def _entry(name: str, recipe: Recipe, root: Path | None, *, alone: bool) -> dict[str, str]:
    if root is None and name != CLEAN and recipe.data.suites is None:
        raise ValueError(
            f"--suite {name}: the run's recipe names no data.suites; give --data ROOT, a folder with one folder "
            "of shards per suite (`list suites` shows the known ones)"
        )
    if root is None:
        return {"suite": name}
    inside = find_shards(root, name) or (find_shards(root, "val") if name == CLEAN else None)
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
