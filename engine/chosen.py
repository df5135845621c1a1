"""Which images of an evaluation set are judged: all, a fixed pseudo-random subset, or those that a file names."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.index import DatasetIndex
from data.order import permutation
from engine.eval_fields import AnyEval

_SHOWN = 3  # unknown names in an error


class Chosen(NamedTuple):
    """Positions in an evaluation set, and what an evaluation id says of them."""

    keys: NDArray[np.int64]  # sorted
    subset: str  # "" of all, "[64]" of the pseudo-random one, "[64-1a2b3c4d]" of a list


def chosen(index: DatasetIndex, entry: AnyEval) -> Chosen:
    """The images of `entry`. ValueError or OSError, one line, for a list that names others or none."""
    total = index.num_samples
    if entry.images is not None:
        keys = _listed(index, Path(entry.images))
        names = "\n".join(index.name(key) for key in keys.tolist())
        return Chosen(keys, f"[{len(keys)}-{hashlib.sha256(names.encode()).hexdigest()[:8]}]")
    subset = "" if entry.num_images is None else f"[{entry.num_images}]"
    if entry.num_images is None or entry.num_images >= total:
        return Chosen(np.arange(total), subset)
    return Chosen(np.sort(permutation(total, seed=0, epoch=0)[: entry.num_images]), subset)


def _listed(index: DatasetIndex, path: Path) -> NDArray[np.int64]:
    wanted = _names(path)
    place = dict(_positions(index))
    found = [next((place[name] for name in _spellings(line) if name in place), None) for line in wanted]
    if unknown := [line for line, key in zip(wanted, found, strict=True) if key is None]:
        raise ValueError(
            f"{path} names {len(unknown)} of {len(wanted)} images that are not in the shards, such as "
            f"{', '.join(unknown[:_SHOWN])}; a name there is like {index.name(0)}"
        )
    keys = np.array(sorted(key for key in found if key is not None), dtype=np.int64)
    if len(np.unique(keys)) != len(keys):
        raise ValueError(f"{path} names an image twice; each is counted once, so drop the repeats")
    return keys


def _names(path: Path) -> Sequence[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text; write the name of an image on each line") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"{path} names no image: the selection is empty; write the name of one on each line")
    return names


def _positions(index: DatasetIndex) -> Iterator[tuple[str, int]]:
    position = 0
    for shard in range(len(index.shards)):
        for name in index.names(shard):
            yield bytes(name).decode(), position
            position += 1


def _spellings(line: str) -> Iterator[str]:
    """The name as it stands, and as other people's lists have it: with the file's ending, below a split's folder."""
    path = PurePosixPath(line)
    yield line
    if not path.name:
        return
    yield str(path.with_suffix(""))
    if len(path.parts) > 2:
        yield str(PurePosixPath(*path.parts[-2:]).with_suffix(""))
