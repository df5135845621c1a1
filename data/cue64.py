"""`shards make cue64`: a generated, licence-clean 64 px task of any size, written as shards: train, val, shifted tests.

The label is the shape's class. The texture in it is the one that belongs to the label with probability `correlation`,
else any; so one number says how far texture tells the answer, and what a model makes of it can be measured:
`cue64-conflict` shows shape and texture of two different classes. A sample's key is `shapeS_textureT/NNNNNN`, S the
label, T the class whose texture it shows (`unseenT` for textures of no class, nothing for a shape without texture)
and NNNNNN the image's number; the shifted tests show the scenes of `val` with the same numbers.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.cue_corruptions import corrupt
from data.cue_renditions import render
from data.cue_scene import (
    Canvas,
    Draw,
    Painter,
    conflict_classes,
    draw_scenes,
    make_canvas,
    patch_orders,
    shape_classes,
    shuffle_patches,
    texture_classes,
)
from data.cue_shapes import SHAPES
from data.cue_textures import UNSEEN, Part
from data.description import INDEX_FILE, Shard
from data.index import DatasetIndex, load_index
from data.order import hash64
from data.records import save_dataset, shard_workers
from data.shards import Sample, whole_folder, write_shard

SHIFTED: Final = (
    *("conflict", "silhouette", "sketch", "retextured", "shuffled"),
    *("corrupted", "rendition"),
)
_REDRAWN: Final = {"cue64-corrupted": corrupt, "cue64-rendition": render}
FOLDERS: Final = ("train", "val", *(f"cue64-{name}" for name in SHIFTED))
_VERSION: Final = 1  # of the pictures: whoever changes them counts it up
_MOST_WORKERS: Final = 2  # where the caller leaves the number open
_LEAST_SHARDS: Final = 4  # of a folder, so that several processes can write it
_KEY: Final = re.compile(r"shape(\d+)_texture(\d+)/\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue64:
    """What is made. ValueError with value, rule and remedy."""

    seed: int = 0
    correlation: float = 0.5
    num_train: int = 20_000
    num_val: int = 2_000
    num_classes: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1:  # refuses nan too
            raise ValueError(
                f"correlation {self.correlation} is a probability; use 0 to 1, for example 0, 0.5 or 0.95"
            )
        if not 2 <= self.num_classes <= len(SHAPES):
            raise ValueError(f"num_classes {self.num_classes}: cue64 has 2 to {len(SHAPES)} classes")
        for name, value in (("num_train", self.num_train), ("num_val", self.num_val)):
            if value < self.num_classes:
                raise ValueError(
                    f"{name} {value} is below one image for each of {self.num_classes} classes; use more"
                )

    @property
    def dataset(self) -> str:
        """Name in the index: what the pictures depend on."""
        return (
            f"cue64 v{_VERSION} seed {self.seed} correlation {self.correlation:g} classes {self.num_classes}"
        )


class Made(NamedTuple):
    """One folder of shards."""

    path: Path
    shards: DatasetIndex
    is_reused: bool


class CueTask(NamedTuple):
    """One shard to write."""

    path: Path
    folder: str
    images: NDArray[np.int64]  # their numbers, in the shard's order
    settings: Cue64
    canvas: Canvas


def make_cue64(
    dst: str | Path, settings: Cue64, *, samples_per_shard: int = 2000, num_workers: int | None = None
) -> Iterator[Made]:
    """Write `dst/FOLDER` for every name in FOLDERS and yield each when it is whole; one that is there already is
    used. Equal settings give equal bytes whatever `num_workers` is (None: two). ValueError, before anything is
    written, for a `dst` that holds something else under these names.
    """
    dst = Path(dst)
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard {samples_per_shard} must be at least 1")
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"{dst} is a file; give a folder, or the name of a new one")
    there = {name: found for name in FOLDERS if (found := _find(dst / name, name, settings)) is not None}
    return _make_folders(
        dst, settings, there, samples_per_shard, _MOST_WORKERS if num_workers is None else num_workers
    )


def texture_of(key: str) -> int | None:
    """The class whose texture the sample with this key shows; None where it shows none of a class."""
    found = _KEY.fullmatch(key)
    return int(found[2]) if found else None


def paint(
    folder: str, images: NDArray[np.int64], settings: Cue64, painter: Painter
) -> Iterator[tuple[str, int, Image.Image]]:
    """(key, label, 64 x 64 RGB picture) of the images with these numbers, whatever their order and company. The
    correlation decides about nothing but the textures.
    """
    split = "train" if folder == "train" else "val"
    draws = draw_scenes(images, seed=settings.seed, split=split)
    labels = shape_classes(images, num_classes=settings.num_classes)
    textures = texture_classes(
        labels, draws, correlation=settings.correlation, num_classes=settings.num_classes
    )
    if folder == "cue64-conflict":
        textures = conflict_classes(labels, draws, num_classes=settings.num_classes)
    orders = patch_orders(images, seed=settings.seed, split=split)
    rows = zip(images.tolist(), labels.tolist(), textures.tolist(), draws, orders, strict=True)
    for number, label, texture, row, order in rows:
        filling = f"_texture{texture}"
        match folder:
            case "cue64-silhouette":
                picture, filling = painter.silhouette(row, label), ""
            case "cue64-sketch":
                picture, filling = painter.sketch(row, label), ""
            case "cue64-retextured":
                family = int(row[Draw.UNSEEN] * len(UNSEEN))
                picture, filling = painter.retextured(row, label, family), f"_unseen{family}"
            case "cue64-shuffled":
                picture = shuffle_patches(painter.scene(row, label, texture), order)
            case "cue64-corrupted" | "cue64-rendition":
                scene = np.asarray(painter.scene(row, label, texture))
                own_seed = int(hash64(folder, settings.seed, number) >> np.uint64(1))  # fits an int64
                picture = Image.fromarray(_REDRAWN[folder](scene, own_seed))
            case _:
                picture = painter.scene(row, label, texture)
        yield f"shape{label}{filling}/{number:06d}", label, picture


def part_of(folder: str) -> Part:
    """Which half of the tiles a folder is made of."""
    return "train" if folder == "train" else "test"


def _find(path: Path, folder: str, settings: Cue64) -> DatasetIndex | None:
    """The shards in `path` when they are the ones wanted, None where there is nothing."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / INDEX_FILE).is_file():
        raise ValueError(f"{path} exists and holds no index; remove it, or choose another DST")
    index = load_index(path)
    there = (index.description.dataset, index.description.split, index.num_samples)
    wanted = (settings.dataset, folder, _num_images(folder, settings))
    if there != wanted:
        raise ValueError(
            f"{path} holds {there[2]} images of {there[0]!r}, not {wanted[2]} of {wanted[0]!r}; remove it, or "
            "choose another DST"
        )
    return index


def _num_images(folder: str, settings: Cue64) -> int:
    return settings.num_train if folder == "train" else settings.num_val


def _make_folders(
    dst: Path, settings: Cue64, there: dict[str, DatasetIndex], samples_per_shard: int, num_workers: int
) -> Iterator[Made]:
    canvases: dict[Part, Canvas] = {}
    with shard_workers(num_workers if len(there) < len(FOLDERS) else 0) as run:
        for folder in FOLDERS:
            if folder in there:
                yield Made(dst / folder, there[folder], True)
                continue
            part = part_of(folder)
            if part not in canvases:
                canvases[part] = make_canvas(part, num_classes=settings.num_classes)
            with whole_folder(dst / folder) as partial:
                shards = run(_write_shard, _cut(partial, folder, settings, canvases[part], samples_per_shard))
                classes = SHAPES[: settings.num_classes]
                save_dataset(partial, list(shards), classes=classes, split=folder, dataset=settings.dataset)
            yield Made(dst / folder, load_index(dst / folder), False)


def _cut(
    path: Path, folder: str, settings: Cue64, canvas: Canvas, samples_per_shard: int
) -> Iterator[CueTask]:
    """Images shuffled over all shards once, as in every other set."""
    number = _num_images(folder, settings)
    order = np.argsort(hash64(settings.seed, "shards", np.arange(number)), kind="stable")
    size = min(samples_per_shard, -(-number // _LEAST_SHARDS))
    for shard, start in enumerate(range(0, number, size)):
        name = f"{folder}-{shard:06d}.tar"
        yield CueTask(path / name, folder, order[start : start + size], settings, canvas)


def _write_shard(task: CueTask) -> Shard:
    painter = Painter(task.canvas)
    samples = (
        Sample(key, label, _encode(picture), source=key)
        for key, label, picture in paint(task.folder, task.images, task.settings, painter)
    )
    return write_shard(task.path, samples)


def _encode(picture: Image.Image) -> bytes:
    """Lossless WebP at its quickest: a fifth quicker and smaller than PNG at level 1, and as quick to decode."""
    file = io.BytesIO()
    picture.save(file, format="WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()
