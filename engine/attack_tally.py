"""Sums over the rows of components that follow each other, once these are proved to be of the right images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.index import DatasetIndex
from data.verify import key_hash
from engine.ledger import Ledger, read_ledger, wilson_interval
from engine.rows import CLEAN, UNREADABLE


class Images(NamedTuple):
    """Which images an evaluation is about: enough to prove rows to be theirs where the shards are elsewhere."""

    num: int
    key_hash: str  # of their names

    @staticmethod
    def of(index: DatasetIndex, keys: NDArray[np.int64]) -> "Images":
        """About 8 us an image."""
        return images_named([index.name(key) for key in keys.tolist()])


def images_named(names: Sequence[str]) -> Images:
    return Images(len(names), key_hash(np.array([name.encode() for name in names], dtype=np.bytes_)))


def tally_in_turn(
    folder: Path,
    identity: str,
    components: Sequence[str],
    images: Images,
    *,
    counts_bad: bool,
) -> Mapping[str, Any]:
    """Of evaluation `identity` in the ledger in `folder`: every image has the first component, and whatever is right so
    far has the next one; nothing else has. Each component also has `num_broken`, and `queries`: model passes it spent.
    `counts_bad`: images that could not be read count apart too. ValueError where rows are missing."""
    book = read_ledger(folder, identity)
    _prove_images(book, folder, identity, components[0], images)
    left = book.right(identity, components[0])
    for component in components[1:]:
        _prove_turn(folder, component, left, book.done(identity, component))
        left = book.right(identity, component)
    summary = book.summary(identity)
    effort = book.effort(identity)
    none = {"num_images": 0, "num_correct": 0, "num_top5": 0}
    parts = {
        name: {**summary["components"].get(name, none), "num_broken": broken, "queries": queries}
        for name in components
        for broken, queries in [effort.get(name, (0, 0))]
    }
    bad = {"num_bad": book.count_predicted(identity, CLEAN, UNREADABLE)} if counts_bad else {}
    interval = wilson_interval(summary["num_correct"], summary["num_images"])
    return {**summary, "components": parts, **bad, "interval": list(interval)}


def _prove_images(book: Ledger, folder: Path, identity: str, component: str, images: Images) -> None:
    found = images_named(book.keys(identity, component))
    if found.num != images.num:
        raise ValueError(
            f"{folder} has {found.num} of {images.num} images for {component}; do all processes write to one disk? "
            "start again, it goes on from what is there"
        )
    if found.key_hash != images.key_hash:
        raise ValueError(
            f"{folder} has {found.num} images for {component}, but not those of the evaluation (key hash "
            f"{found.key_hash}, not {images.key_hash}); evaluate anew with another --output"
        )


def _prove_turn(folder: Path, component: str, left: NDArray[np.int64], done: NDArray[np.int64]) -> None:
    if not np.array_equal(done, left):
        missing, strange = len(np.setdiff1d(left, done)), len(np.setdiff1d(done, left))
        raise ValueError(
            f"{folder} lacks {component} on {missing} images that were right before it, and has it on {strange} "
            "that were not; start again, it goes on from what is there"
        )
