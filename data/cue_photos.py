"""Photographed textures that ship inside scikit-image's wheel, so that nothing is downloaded and nothing copied here.

All three are dedicated to the public domain under CC0 1.0, as scikit-image's documentation of each states: brick
(CC0Textures "Bricks25"), grass (DeviantArt, linolafett, "Grass-01"), gravel (CC0Textures "Gravel04"). scikit-learn's
china.jpg and flower.jpg are CC BY 2.0 and would bind whoever passes the shards on to name the photographers, so they
are left out.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Photo(NamedTuple):
    """`reduction`: how much smaller it is shown, so that a brick or a stone fits into a shape of 40 px."""

    sha256: str
    reduction: int


PHOTOS: Final = {
    "brick": Photo("7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", 3),
    "grass": Photo("b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", 1),
    "gravel": Photo("c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", 2),
}
SIDE: Final = 512  # of each photograph, in pixels
TRAIN_COLUMNS: Final = (0, 300)  # training takes its textures from these columns, every test from the others
TEST_COLUMNS: Final = (300, SIDE)
_ROWS_APART: Final = 96


def photo_field(name: str, *, is_train: bool, number: int, side: int) -> NDArray[np.float64]:
    """[side,side] grey levels of one part of a photograph, mirrored at its borders to fill the square. Every
    `number` starts at another row.

    ValueError where scikit-image or the very file is missing.
    """
    first, last = TRAIN_COLUMNS if is_train else TEST_COLUMNS
    region = read_photo(name).crop((first, 0, last, SIDE)).reduce(PHOTOS[name].reduction)
    top = number * _ROWS_APART % max(1, region.height - side + 1)
    grey = np.asarray(region, dtype=np.float64)[top : top + side, :side]
    missing = [(0, side - length) for length in grey.shape]
    return np.pad(grey, missing, mode="symmetric")


def read_photo(name: str) -> Image.Image:
    """The photograph, mode L, 512 x 512."""
    spec = importlib.util.find_spec("skimage")  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise ValueError(
            "cue64's photographed textures come from scikit-image, which is missing: pip install -e '.[demo]'"
        )
    path = Path(spec.origin).parent / "data" / f"{name}.png"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != PHOTOS[name].sha256:
        raise ValueError(
            f"{path} is not the photograph that cue64 is made of; install another release: "
            "pip install 'scikit-image>=0.22'"
        )
    with Image.open(path, formats=("PNG",)) as image:
        return image.convert("L")
