"""What a training draws its images from: indexed shards, shuffled over windows of them, or a stream of tars."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.index import DatasetIndex
from data.remote import is_url
from data.samples import expand_urls
from data.store import RemoteShards
from engine.fields import DataSection
from engine.recipe import Recipe
from engine.sources import Access, numbered, open_shards

WINDOW_OF_URL: Final = (
    64  # shards; of ImageNet's 1281 tars about 64,000 images, where a full shuffle needs all of them
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Tars without an index, read in order; with the names that an index has for the same things."""

    shards: tuple[str, ...]  # paths and URLs
    num_samples: int  # images of an epoch
    classes: tuple[str, ...]
    allow_pipes: bool

    @property
    def dataset_id(self) -> str:
        """Of the tars' names, wherever they lie: nothing else is known of them."""
        names = "\n".join(shard.partition("?")[0].rpartition("/")[2] for shard in self.shards)
        return f"stream-{hashlib.sha256(names.encode()).hexdigest()}"


TrainingSet = DatasetIndex | Stream


def open_training_set(recipe: Recipe, access: Access) -> TrainingSet:
    """What data.train names. ValueError or OSError in one line; of a stream not a byte is read."""
    d = recipe.data
    if d.indexed:
        return open_shards(d.train, access, field="data.train", num_classes=d.num_classes)
    assert d.num_classes is not None, "checked with the recipe"
    assert d.epoch_images is not None, "checked with the recipe"
    classes = numbered(d.num_classes)
    if d.val is not None:
        classes = open_shards(d.val, access, field="data.val", num_classes=d.num_classes).classes
    return Stream(
        shards=_tars(d.train, access),
        num_samples=d.epoch_images,
        classes=classes,
        allow_pipes=access.allow_pipes,
    )


def window_of(data: DataSection, index: TrainingSet) -> int | None:
    """How many shards are shuffled together, at most all there are; None for a stream, which is not shuffled."""
    if isinstance(index, Stream):
        return None
    is_remote = isinstance(index.store, RemoteShards)
    asked = data.window or (WINDOW_OF_URL if is_remote else "all")
    return len(index.shards) if asked == "all" else min(asked, len(index.shards))


def kept_window(data: DataSection, index: TrainingSet, *, used: int | None, source: Path) -> int | None:
    """The window that the run in `source` used: its order goes on, wherever its shards lie now. ValueError for a
    recipe that asks for another.
    """
    if data.window is not None and window_of(data, index) != used:
        raise ValueError(
            f"{source} was shuffled over windows of {used} of {len(index.shards)} shards, data.window {data.window} "
            f"would change that; give {used} or null, or another --output"
        )
    return used


def describe_order(index: TrainingSet, window: int | None) -> str:
    """One line where the order of an epoch is less than a shuffle of all images, else ''."""
    total = len(index.shards)
    if window is None:
        return (
            f"data.train has no index: its {total} tars are read in order, {index.num_samples} images count as an "
            "epoch"
        )
    if window == total:
        return ""
    return (
        f"data.train is shuffled over windows of {window} of its {total} shards (quality {window / total:.2g}, 1 is "
        "a shuffle of all images); data.window changes that"
    )


def _tars(place: str, access: Access) -> tuple[str, ...]:
    """The tars of a folder, or those that a comma-separated list of paths and URLs with {000000..000146} names."""
    if not is_url(place) and Path(place).is_dir():
        found = tuple(str(path) for path in sorted(Path(place).glob("*.tar")))
    else:
        # A command may have commas of its own, so a pipe stands alone.
        parts = [place] if place.startswith("pipe:") else place.split(",")
        found = expand_urls([part.strip() for part in parts], allow_pipes=access.allow_pipes)
    for path in found:
        if not is_url(path) and not Path(path).is_file():
            raise FileNotFoundError(
                f"data.train: no file {path}; give a folder of tars, or paths or URLs such as train-{{000..146}}.tar"
            )
    if not found:
        raise FileNotFoundError(
            f"data.train {place} names no tars; give a folder of them, or their paths or URLs"
        )
    return found
