"""How shards are reached, in a folder or behind a URL, and whether their classes are those of a model."""

import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from data.built import index_folder
from data.cache import Cache
from data.index import INDEX_FILE, DatasetIndex, load_index
from data.mirror import NoIndex
from data.remote import is_url, shown
from data.suite import NotForThis
from engine.counter import Counter

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TARS: Final = re.compile(r"\{\d+\.\.\d+\}|\.tar$")


class Access:
    """How a process reaches shards. What is remote is opened once: all evaluations of a run are then of one data set,
    and the server may be gone by the last of them.
    """

    def __init__(self, cache: str | None = None, *, allow_pipes: bool = False, builds: bool = True) -> None:
        """`cache`: folder for what is remote, None: see `Cache.default`. `builds`: write the index of a folder of
        tars that has none.
        """
        self.allow_pipes = allow_pipes
        self._folder, self._builds = cache, builds
        self._opened: dict[str, DatasetIndex] = {}

    @property
    def cache(self) -> Cache:
        return Cache.default(self._folder)

    def open(self, place: str, *, field: str) -> DatasetIndex:
        """The index of the shards at `place`, which recipe field `field` names. ValueError or OSError in one line."""
        _check_address(place, field)
        if is_url(place):
            if place not in self._opened:
                self._opened[place] = self._open_url(place, field)
            return self._opened[place]
        if self._builds:
            self._build(Path(place), field)
        return load_index(Path(place), cache=self.cache, build=self._builds)

    def has_index(self, url: str) -> bool:
        """Whether there is an index at `url`; it is opened, if so. RemoteError where that cannot be found out."""
        try:
            self.open(url, field="--data")
        except NoIndex:
            return False
        return True

    def _open_url(self, url: str, field: str) -> DatasetIndex:
        with warnings.catch_warnings(
            record=True
        ) as told:  # the launchers silence Python's own way to show them
            warnings.simplefilter("always")
            try:
                index = load_index(url, cache=self.cache, allow_pipes=self.allow_pipes)
            except NoIndex as error:
                other = ", or train without one (--no-index)" if field == "data.train" else ""
                raise NoIndex(f"{field} {error}{other}") from None
        for warning in told:
            if issubclass(warning.category, RuntimeWarning):
                _say(f"{field}: {warning.message}")
        return index

    def _build(self, root: Path, field: str) -> None:
        """By one process of several, which says so."""
        watch = Counter(f"index {root}")

        def begin(into: Path, num_tars: int) -> None:
            watch.say(
                f"{field} {root} has no {INDEX_FILE}: indexing its {num_tars} tars, once, into {into} "
                f"(`shards index {root} --workers N` does it with several processes)"
            )

        try:
            index_folder(root, self.cache, begin=begin, watch=watch)
        finally:
            watch.close()


def open_shards(
    place: str,
    access: Access,
    *,
    field: str,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    by_name: bool = True,
) -> DatasetIndex:
    """The index of shards at `place`, checked against a number of classes, or against the classes of a training.

    Names are compared and not only counted: a label means the class at its place in the list. But the classes of a
    training may have none (`by_name` false).
    """
    index = access.open(place, field=field)
    if classes is not None and (difference := _class_difference(index.classes, classes, by_name=by_name)):
        raise NotForThis(f"{field} {shown(place)} {difference}; the model would be misjudged")
    if num_classes is not None and num_classes != len(index.classes):
        raise ValueError(
            f"{field} {shown(place)} has {len(index.classes)} classes and data.num_classes is {num_classes}; "
            "correct one of the two"
        )
    return index


def numbered(num_classes: int) -> tuple[str, ...]:
    """The classes of a training that nobody named."""
    return tuple(map(str, range(num_classes)))


def _class_difference(found: Sequence[str], trained: Sequence[str], *, by_name: bool) -> str:
    if len(found) != len(trained):
        other = "training shards have" if by_name else "model has"
        return f"has {len(found)} classes and the {other} {len(trained)}"
    pairs = enumerate(zip(found, trained, strict=True))
    place = next((i for i, (a, b) in pairs if a != b), None) if by_name else None
    if place is None:
        return ""
    return f"has class {found[place]!r} as number {place}, the training shards have {trained[place]!r} there"


def _check_address(place: str, field: str) -> None:
    if _ADDRESS.match(place) and not is_url(place):
        raise ValueError(
            f"{field} {shown(place)}: addresses that are read begin with https, http, gs, s3, hf or pipe:; give one "
            "of these, or a folder"
        )
    if _TARS.search(place.partition("?")[0]) and not place.startswith("pipe:") and not Path(place).is_dir():
        other = ", or train without one (--no-index)" if field == "data.train" else ""
        raise ValueError(
            f"{field} {shown(place)} names tars; give the folder, or its URL, where their index lies{other}"
        )


def _say(text: str) -> None:
    """One process of several; standard output stays free for results."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
