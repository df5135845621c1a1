"""Tiny copies of ImageNet's sets with their real folder names, and a model that sees which label an image is of.

A picture is of one colour, which is a label of ImageNet; whoever maps classes wrongly gets next to nothing right.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from data.class_map import read_table
from data.shards import make
from data.suite import load_suite
from data.wnids import real_labels, wnids
from engine.recipe import Recipe, parse_recipe

ALL = wnids()
SIZE = 16
WRONG_REAL = 40  # images of `real` that show another label than ReaL's


def picture(path: Path, label: int, *, size: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (label // 4, 60 * (label % 4), 7)).save(path)


class SeesLabels(nn.Module):
    """Logits [N,K]: minus the squared distance of the picture's label and each of the model's."""

    def __init__(self, labels: Tensor | None = None) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.arange(1000.0) if labels is None else labels.float())

    def forward(self, image: Tensor) -> Tensor:
        colour = 255 * image.mean(dim=(2, 3))
        found = 4 * colour[:, 0].round() + (colour[:, 1] / 60).round()
        return -50 * (found[:, None] - self.labels) ** 2


def recipe_of(*, size: int = SIZE, **data: object) -> Recipe:
    tree = {
        "data": {
            "train": "t",
            "indexed": False,
            "epoch_images": 200,
            "num_classes": 1000,
            "num_workers": 0,
            "image_size": size,
            **data,
        },
        "model": {"name": "small_cnn"},
        "optim": {"lr": 1.0},
        "run": {"epochs": 1, "batch_size": 200},
    }
    return parse_recipe(tree, "test")


def make_validation(images: Path, dst: Path) -> None:
    """One image a class, ILSVRC2012_val_00000001 to 1000; the first WRONG_REAL that ReaL has a label for show another
    one."""
    labels = real_labels()
    listed = [number for number in range(1000) if labels[number]][:WRONG_REAL]
    for number, wnid in enumerate(ALL):
        shown = labels[number][-1] if labels[number] else number
        if number in listed:
            shown = next(label for label in range(1000) if label not in labels[number])
        picture(images / wnid / f"ILSVRC2012_val_{number + 1:08d}.png", shown)
    make(images, dst, split="val")


def make_subset(images: Path, dst: Path, name: str) -> None:
    for wnid in wnids(name):
        picture(images / wnid / "1.png", ALL.index(wnid))
    make(images, dst, split=name)


def make_numbered(images: Path, dst: Path) -> None:
    for label in range(1000):
        picture(images / str(label) / "1.png", label)
    make(images, dst, split="v2")


def make_table(images: Path, dst: Path, id: str) -> None:
    """The last label of every class."""
    for name, labels in read_table(id).items():
        picture(images / name / f"{name}1-other2.png", labels[-1])
    make(images, dst, split=id)


def make_corrupted(images: Path, dst: Path, *, kinds: tuple[str, ...] | None = None, size: int = 224) -> None:
    """ImageNet-C's folders with 4 images each, of which severity - 1 show another label."""
    for kind in kinds or load_suite("c").kinds:
        for severity in range(1, 6):
            place = images / kind / str(severity)
            for number in range(4):
                label = 250 * number
                shown = (label + 1) if number < severity - 1 else label
                picture(place / ALL[label] / f"ILSVRC2012_val_{number + 1:08d}.png", shown, size=size)
            make(place, dst / kind / str(severity), split=f"{kind}-{severity}", classes=ALL)


def write_objectnet(folder: Path) -> None:
    """Two classes of three with labels, in the form of the download's four files."""
    files = {
        "folder_to_objectnet_label.json": {
            "alarm_clock": "Alarm clock",
            "mug": "Mug",
            "air_freshener": "Air freshener",
        },
        "objectnet_to_imagenet_1k.json": {"Alarm clock": "analog clock; digital clock", "Mug": "coffee mug"},
        "pytorch_to_imagenet_2012_id.json": {"409": 2, "530": 0, "504": 1},
    }
    (folder / "mappings").mkdir(parents=True)
    for name, content in files.items():
        (folder / "mappings" / name).write_text(json.dumps(content))
    (folder / "mappings/imagenet_to_label_2012_v2").write_text("digital clock\ncoffee mug\nanalog clock\n")
