"""The result of an evaluation: sums over its rows in the ledger, once these are proved to be of the right images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.index import DatasetIndex
from data.transform import EvalTransform
from data.verify import key_hash
from engine.ledger import Ledger, read_ledger, wilson_interval
from engine.rows import CLEAN, UNREADABLE
from engine.scores import scores_of


def tally(
    folder: Path,
    identity: str,
    components: Sequence[str],
    index: DatasetIndex,
    keys: np.ndarray,
    *,
    counts_bad: bool,
) -> Mapping[str, Any]:
    """Of evaluation `identity` in the ledger in `folder`: counts, for each component too, and their interval; also what
    engine.scores tells of them.
    `counts_bad`: images that could not be read count as wrong, and apart. ValueError where rows are missing."""
    book = read_ledger(folder, identity)
    for component in components:
        _prove_whole(book, folder, identity, component, index, keys)
    counts = _counted(book, identity, counts_bad=counts_bad)
    return {**counts, **scores_of(book, identity, components)}


def _counted(book: Ledger, identity: str, *, counts_bad: bool) -> Mapping[str, Any]:
    summary = book.summary(identity)
    interval = wilson_interval(summary["num_correct"], summary["num_images"])
    bad = {"num_bad": book.count_predicted(identity, CLEAN, UNREADABLE)} if counts_bad else {}
    return {**summary, **bad, "interval": list(interval)}


def _prove_whole(
    book: Ledger, folder: Path, identity: str, component: str, index: DatasetIndex, keys: np.ndarray
) -> None:
    """Every image of `keys` has its verdict, and no other has one."""
    if (found := len(book.done(identity, component))) != len(keys):
        raise ValueError(
            f"{folder} has {found} of {len(keys)} images for {component}; do all processes write to "
            "one disk? start again, it goes on from what is there"
        )
    _prove(book, folder, identity, component, index, keys)


def _prove(
    book: Ledger, folder: Path, identity: str, component: str, index: DatasetIndex, keys: np.ndarray
) -> None:
    """The judged images have the names that the index gives to `keys`, each of them once. About 2 us an image, and
    8 where they are not all.
    """
    names = book.keys(identity, component)
    wanted = index.description.key_hash
    if len(keys) != index.num_samples:
        wanted = _hash_of([index.name(key) for key in keys.tolist()])
    if (found := _hash_of(names)) != wanted:
        raise ValueError(
            f"{folder} has {len(names)} images for {component}, but not those of the index (key hash {found}, "
            f"not {wanted}); evaluate anew with another --output"
        )


def _hash_of(names: Sequence[str]) -> str:
    return key_hash(np.array([name.encode() for name in names], dtype=np.bytes_))


def contract_id(
    transform: EvalTransform, image_size: int, *, protocol: str = "default", words: Sequence[str] = ()
) -> str:
    """Names how an image reached the model, and what else changes a verdict (`words`, empty ones left out), so that
    numbers of different protocols are never taken for the same."""
    resize = f"center{transform.crop_pct:g}" if transform.mode == "center" else transform.mode
    filtered = f"{resize}-{transform.interpolation}" if transform.mode != "none" else resize
    turned = "-exif" if transform.apply_exif else ""
    turned += f"-border{transform.border}" if transform.border else ""
    ending = "".join(f"-{word}" for word in words if word)
    return f"{protocol}/{filtered}-{image_size}px{turned}{ending}"
