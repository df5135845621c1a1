"""What is in a folder of shards: counts, classes, sizes of the images, formats."""

from pathlib import Path
from typing import Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from data.index import FLAG_CMYK, FLAG_FORMAT, FLAG_GRAY, FLAG_PROGRESSIVE, FLAG_ROTATED, FORMATS, load_index

_FLAGS: Final = {
    "gray": FLAG_GRAY,
    "cmyk": FLAG_CMYK,
    "rotated": FLAG_ROTATED,
    "progressive": FLAG_PROGRESSIVE,
}


class Spread(TypedDict):
    """Of a number that every image, or class, has."""

    min: int
    median: float
    max: int


class Info(TypedDict):
    """Plain facts about an indexed folder. `flags`: images that are so; `rotated`: EXIF asks for it."""

    dataset: str
    split: str
    dataset_id: str
    num_samples: int
    num_classes: int
    classes: list[str]
    class_counts: list[int]
    images_per_class: Spread
    empty_classes: int
    num_shards: int
    bytes: int
    image_bytes: Spread
    width: Spread
    height: Spread
    formats: dict[str, int]
    flags: dict[str, int]
    created_by: str


def info(dst: str | Path) -> Info:
    """Counts, classes, bytes, sizes, formats and the id of the data set in folder `dst`."""
    index = load_index(dst)
    records = np.concatenate([index.records(number) for number in range(len(index.shards))])
    formats = np.bincount(records["flags"] & FLAG_FORMAT, minlength=len(FORMATS))
    counts = np.bincount(records["label"], minlength=len(index.classes))
    flags = {name: int(np.count_nonzero(records["flags"] & flag)) for name, flag in _FLAGS.items()}
    return Info(
        dataset=index.description.dataset,
        split=index.description.split,
        dataset_id=index.dataset_id,
        num_samples=index.num_samples,
        num_classes=len(index.classes),
        classes=list(index.classes),
        class_counts=counts.tolist(),
        images_per_class=_spread(counts[counts > 0]),
        empty_classes=int(np.count_nonzero(counts == 0)),
        num_shards=len(index.shards),
        bytes=sum(shard.size for shard in index.shards),
        image_bytes=_spread(records["size"]),
        width=_spread(records["width"]),
        height=_spread(records["height"]),
        formats={name: int(count) for name, count in zip(FORMATS, formats, strict=True) if count},
        flags=flags,
        created_by=index.description.created_by,
    )


def _spread(values: NDArray[np.integer]) -> Spread:
    if not len(values):
        return Spread(min=0, median=0.0, max=0)
    return Spread(min=int(values.min()), median=float(np.median(values)), max=int(values.max()))
