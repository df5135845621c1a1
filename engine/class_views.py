"""The views of a suite: its manifest's class rule, put to the classes of its shards and of the model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.class_map import Columns, label_columns, map_classes
from data.classes import some
from data.index import DatasetIndex
from data.suite import Suite
from data.wnids import real_labels
from engine.view import PLAIN, View

_VALIDATION: Final = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})")


class ClassViews(NamedTuple):
    """How a set is judged, and which positions (None: all)."""

    views: tuple[View, ...]
    judged: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def class_views(suite: Suite, index: DatasetIndex, trained: Sequence[str], *, folder: Path) -> ClassViews:
    """For a model of classes `trained`. ValueError in one line where set, shards and model do not fit."""
    columns = map_classes(suite, index.classes, trained, folder=folder)
    if suite.decide == "real":
        return _real(suite, index, label_columns(suite, trained))
    labels = index.labels()
    judged = _judged(columns, labels)
    notes = _check_whole(suite, index, columns, labels, judged)
    own = View.any_of(columns, id="")
    if suite.decide == "mean":
        return ClassViews((View.competing(columns, mean=True),), judged, notes)
    if suite.decide == "masked":
        own = View.any_of(columns, id=f"full{len(trained)}")
        return ClassViews((View.competing(columns), own), judged, notes)
    is_plain = all(row == (place,) for place, row in enumerate(columns)) and len(columns) == len(trained)
    if any(len(row) > 1 for row in columns):
        own = View.any_of(columns, id=f"any-full{len(trained)}")
    elif not is_plain and len(columns) != len(trained):
        own = View.any_of(columns, id=f"full{len(trained)}")
    return ClassViews((PLAIN if is_plain else own,), judged, notes)


def _judged(columns: Columns, labels: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if all(columns):
        return None
    has_columns = np.array([bool(row) for row in columns])
    return np.flatnonzero(has_columns[labels]).astype(np.int64)


def _check_whole(
    suite: Suite,
    index: DatasetIndex,
    columns: Columns,
    labels: NDArray[np.int64],
    judged: NDArray[np.int64] | None,
) -> tuple[str, ...]:
    """Refuses a set of which a class has no image; says where the number of images is another one."""
    if judged is not None and not len(judged):
        raise ValueError(
            f"suite {suite.id}: none of its images is of a class that is judged; take the right folder"
        )
    there = set(np.unique(labels).tolist())
    empty = [name for place, name in enumerate(index.classes) if columns[place] and place not in there]
    if empty and (suite.decide != "all" or suite.classes == "numbers"):
        raise ValueError(
            f"suite {suite.id}: {len(empty)} of its {sum(map(bool, columns))} classes have no image: {some(empty)}; "
            "unpack the set again and make its shards again"
        )
    return _count_note(suite, index.num_samples if judged is None else len(judged))


def _real(suite: Suite, index: DatasetIndex, columns: Sequence[int]) -> ClassViews:
    """ReaL's labels by the number in an image's name. Images without a label are not judged."""
    lists = real_labels()
    rows: list[tuple[int, ...]] = []
    for shard in range(len(index.shards)):
        for name in index.names(shard):
            number = _VALIDATION.fullmatch(bytes(name).decode())
            if number is None or not 1 <= int(number[1]) <= len(lists):
                raise ValueError(
                    f"suite {suite.id}: image {bytes(name).decode()!r} is not called ILSVRC2012_val_NUMBER, so its "
                    "labels are not known; make the shards from the original files"
                )
            rows.append(tuple(columns[label] for label in lists[int(number[1]) - 1]))
    judged = np.flatnonzero([bool(row) for row in rows]).astype(np.int64)
    if not len(judged):
        raise ValueError(f"suite {suite.id}: none of its {len(rows)} images has a label; take other images")
    views = (View.any_of(rows, id="real", by_key=True),)
    return ClassViews(views, judged, _count_note(suite, len(rows)))


def _count_note(suite: Suite, count: int) -> tuple[str, ...]:
    if suite.num_images is None or count == suite.num_images:
        return ()
    return (f"{count:,} images, where a whole {suite.title} has {suite.num_images:,}",)
