"""Evaluation sets as data: one manifest `data/suites/ID.yaml` says what a set is and how its images reach a model.

This file opens no image and no shard, and imports nothing heavy, so that listing suites stays quick.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

Resize = Literal["crop", "squash", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Metric = Literal["top1", "error"]
Classes = Literal["same", "wnids", "numbers", "map", "objectnet"]
Decide = Literal["all", "masked", "mean", "real"]

_MANIFESTS: Final = Path(__file__).with_name("suites")
_FIRST: Final = "clean"
EVERY: Final = "*"  # as a kind: whatever folders there are
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHOICES: Final = {
    "resize": (None, *get_args(Resize)),
    "interpolation": (None, *get_args(Interpolation)),
    "metric": get_args(Metric),
    "classes": get_args(Classes),
    "decide": get_args(Decide),
}
_TEXTS: Final = ("id", "title", "description", "source", "license", "make")
_COUNTS: Final = ("num_classes", "num_images", "image_size", "severities", "border")


class NotForThis(ValueError):
    """A suite that is as it should be, and not for this model or this protocol: `all` passes it over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One evaluation set. ValueError with field, value, rule and remedy for what does not fit.

    `classes`, how the names of its classes become columns of the model's logits. same: they are the training's class
    list. wnids: each is a class of the model by name; `class_list` (see data.wnids) is what they must be. numbers:
    folders 0 to 999 are labels of ImageNet. map: data/class_maps/ID.yaml says which columns each class stands for.
    objectnet: files of the download say it.

    `decide`, which column wins. all: of all the model's classes. masked: of the set's classes alone, and the result
    of `all` stands beside it. mean: the class with the largest mean probability of its columns. real: all, and any
    of the image's own labels is right.

    `parts`: group -> kinds, each a folder of images of its own, below it `severities` folders where there are any.
    The result is one, with the sums of its parts.
    """

    id: str
    title: str
    description: str  # what is shifted, and how strongly
    source: str
    license: str
    make: str  # the command, or the words, that lead to its shards
    get: str = ""  # where its images are had
    folders: tuple[str, ...] = ()  # names beside its id: of folders of its shards, and on the command line
    family: str | None = None  # one name for several suites, on the command line
    base: str | None = None  # the suite whose images this one shows shifted, under the same keys
    images: str | None = None  # the suite whose images these are, judged by other labels
    resize: Resize | None = None  # None: the protocol's or the recipe's; so are the two below
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    image_size: int | None = None  # px of its files, where they must reach the model as they are
    border: int = 0  # px to cut off all around, first of all
    metric: Metric = "top1"
    classes: Classes = "same"
    class_list: str | None = None
    num_classes: int | None = None
    num_images: int | None = None  # of a whole one; of each part
    decide: Decide = "all"
    on_the_fly: bool = False  # its kinds are corruptions that the device makes of `images`
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    severities: int = 0

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check_text(name, getattr(self, name))
        for name in ("get", "family", "base", "images", "class_list"):
            if getattr(self, name):
                _check_text(name, getattr(self, name))
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"id {self.id!r} is a folder's name too; use letters, digits, '.', '_' and '-', a letter or digit first"
            )
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                words = ", ".join("null" if word is None else word for word in allowed)
                raise ValueError(f"{name} {value!r} is unknown; use {words}")
        if not isinstance(self.on_the_fly, bool):
            raise ValueError(f"on_the_fly {self.on_the_fly!r} must be true or false")
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        _check_crop(self.crop_pct, self.resize)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of all groups."""
        return tuple(kind for kinds in self.parts.values() for kind in kinds)

    @property
    def is_imagenet(self) -> bool:
        """Whether its classes are ImageNet's in some way, and not those of any training."""
        return self.classes != "same"


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


def suites_called(name: str) -> tuple[str, ...]:
    """Ids of the suites that `name` means: the one of that id, else the one with that other name, else a family.
    Empty where no manifest has it: then it is somebody's own."""
    if name in _known():
        return (name,)
    suites = list_suites()
    if also := next((suite.id for suite in suites if name in suite.folders), None):
        return (also,)
    return tuple(suite.id for suite in suites if suite.family == name)


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


def is_suite_name(name: str) -> bool:
    """Whether a folder of that name could be a suite."""
    return _ID.fullmatch(name) is not None


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
        suite = Suite(**_plain(content))
        if suite.id != path.stem:
            raise ValueError(f"id {suite.id!r} differs from the file's name; make both the same")
        for name, other in (("base", suite.base), ("images", suite.images)):
            if other is not None and not path.with_name(f"{other}.yaml").is_file():
                raise ValueError(f"{name} {other!r} is no suite; known are {', '.join(_known())}")
        return suite
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Lists of the file as tuples."""
    folders, parts = content.get("folders", []), content.get("parts", {})
    _check_names_in("folders", folders)
    if not isinstance(parts, dict):
        raise ValueError(f"parts {parts!r} must be groups with a list of kinds each; write `group: [kind]`")
    for group, kinds in parts.items():
        _check_names_in(f"parts.{group}", kinds)
    return content | {"folders": tuple(folders), "parts": {group: tuple(k) for group, k in parts.items()}}


def _check_names_in(name: str, words: object) -> None:
    if not isinstance(words, list) or not all(
        isinstance(w, str) and (w == EVERY or _ID.fullmatch(w)) for w in words
    ):
        raise ValueError(f"{name} {words!r} must be a list of folder names; write [name, other]")


def _check_names(content: Iterable[object]) -> None:
    required = [f.name for f in fields(Suite) if f.default is MISSING and f.default_factory is MISSING]
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


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name} {value!r} must be a whole number, 0 or more")


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
