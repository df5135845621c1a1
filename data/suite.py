"""Evaluation sets as data: one manifest `data/suites/ID.yaml` says what a set is and how its images reach a model.

The shards of a suite lie in a folder that bears its id. This file opens no image and no shard, and imports nothing
heavy, so that listing suites stays quick.
"""

import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Final, Literal, get_args

import yaml

Resize = Literal["crop", "squash", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Metric = Literal["top1"]
Classes = Literal["same"]

_MANIFESTS: Final = Path(__file__).with_name("suites")
SPLITS: Final = (
    "train",
    "val",
)  # lie beside the suites where `shards make --each` packed all; `val` is `clean`
_FIRST: Final = "clean"
_INDEX_FILE: Final = "index.json"  # data.index has this name too, but would import hashes and arrays for it
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHOICES: Final = {
    "resize": (None, *get_args(Resize)),
    "interpolation": (None, *get_args(Interpolation)),
    "metric": get_args(Metric),
    "classes": get_args(Classes),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One evaluation set. ValueError with field, value, rule and remedy for what does not fit.

    `base`: id of the suite whose images this one shows shifted, under the same keys. `resize` as the recipe's
    data.eval_resize; it, `crop_pct` and `interpolation` are the recipe's own where None. `classes` same: the class
    list of the training shards. `make`: the command, or the words, that lead to its shards.
    """

    id: str
    title: str
    description: str  # what is shifted, and how strongly
    source: str
    license: str
    make: str
    base: str | None = None
    resize: Resize | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    metric: Metric = "top1"
    classes: Classes = "same"

    def __post_init__(self) -> None:
        for name in ("id", "title", "description", "source", "license", "make"):
            _check_text(name, getattr(self, name))
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"id {self.id!r} is a folder's name too; use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        if self.base is not None:
            _check_text("base", self.base)
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                words = ", ".join("null" if word is None else word for word in allowed)
                raise ValueError(f"{name} {value!r} is unknown; use {words}")
        _check_crop(self.crop_pct, self.resize)


def list_suites() -> tuple[Suite, ...]:
    """Every suite with a manifest, `clean` first, then by id. ValueError for a manifest that is wrong."""
    return tuple(_read(_MANIFESTS / f"{name}.yaml") for name in _known())


def load_suite(id: str) -> Suite:
    """The suite `id`; ValueError that names the nearest where there is no such manifest."""
    known = _known()
    if id not in known:
        near = get_close_matches(id, known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"suite {id!r} is unknown; {remedy}")
    return _read(_MANIFESTS / f"{id}.yaml")


def own_suite(id: str) -> Suite:
    """What holds for anybody's own shards in a folder named `id`: the recipe's classes and transform."""
    return Suite(
        id=id,
        title=id,
        description="images of your own",
        source="your own folder",
        license="that of the images",
        make=f"shards make IMAGES/{id} SHARDS/{id}",
    )


def find_shards(root: Path, id: str) -> Path | None:
    """The folder `root/id` when it holds an index, else None."""
    return root / id if (root / id / _INDEX_FILE).is_file() else None


def found_suites(root: Path) -> list[str]:
    """Names of the folders of shards in `root`: known suites in the order of `list_suites`, then the others by
    name. The splits of a training are none, nor is what an interrupted `shards make` left behind (hidden folders).
    """
    there = {entry.name for entry in root.iterdir() if _ID.fullmatch(entry.name)} - set(SPLITS)
    names = {name for name in there if find_shards(root, name) is not None}
    known = [name for name in _known() if name in names]
    return known + sorted(names - set(known))


def _known() -> list[str]:
    return sorted((path.stem for path in _MANIFESTS.glob("*.yaml")), key=lambda name: (name != _FIRST, name))


def _read(path: Path) -> Suite:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(
                f"holds {type(content).__name__}; write the fields of a suite, one `name: value` a line"
            )
        _check_names(content)
        suite = Suite(**content)
        if suite.id != path.stem:
            raise ValueError(f"id {suite.id!r} differs from the file's name; make both the same")
        if suite.base is not None and not path.with_name(f"{suite.base}.yaml").is_file():
            raise ValueError(f"base {suite.base!r} is no suite; known are {', '.join(_known())}")
        return suite
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _check_names(content: Iterable[object]) -> None:
    required = [field.name for field in fields(Suite) if field.default is MISSING]
    known = [field.name for field in fields(Suite)]
    given = list(content)
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f"{name!r} is not a field; did you mean {near[0]}?")
    if missing := [name for name in required if name not in given]:
        raise ValueError(
            f"{', '.join(missing)} missing and without default; add {'it' if len(missing) == 1 else 'them'}"
        )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or "\n" in value.strip():
        raise ValueError(
            f"{name} {value!r} must be one line of text; put it in quotes, or behind >- on several lines"
        )


def _check_crop(crop_pct: object, resize: str | None) -> None:
    if crop_pct is None:
        return
    if resize != "crop":
        raise ValueError(
            f"crop_pct {crop_pct!r} counts for resize crop alone, and resize is {resize}; remove one"
        )
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise ValueError(
            f"crop_pct {crop_pct!r} must be a number above 0 and at most 1; timm's default is 0.875"
        )
