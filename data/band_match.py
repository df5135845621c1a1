"""Texture onto a picture without a network: every band of the picture takes the values of a texture's band.

A picture is split into bands of growing scale that add up to it. In each, and in the sum, the picture's values are
replaced by the texture's of the same rank, as in Heeger and Bergen's pyramid matching (SIGGRAPH 1995) but begun at the
picture, once, and without orientation; in the finest bands half of the energy is the texture's own pattern. Large
shapes stay; colours and fine structure are the texture's. This is not AdaIN, and numbers on the two do not compare.
"""

from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data.cue_textures import FAMILIES, Tile, tiles
from data.order import hash64, uniform

Picture = NDArray[np.uint8]  # [H,W,3]
Field = NDArray[np.float64]  # [H,W]

_SIGMAS: Final = (1.0, 2.0, 4.0, 8.0)
_PATTERNED: Final = 2  # of the finest bands
# Grey, red-green, yellow-blue: nearly uncorrelated in pictures, and orthonormal.
_OPPONENT: Final = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
_PHOTOS: Final = ("gravel", "grass", "brick")  # come from scikit-image, which may be missing
_FAMILIES: Final = tuple(name for name in FAMILIES if name not in _PHOTOS)


def texture(number: int, size: tuple[int, int], seed: int) -> Picture:
    """Generated texture `number`: a family's tile between two colours, cut at a place drawn from `seed`."""
    family = _FAMILIES[number % len(_FAMILIES)]
    made = _tiles(family)
    tile = made[number // len(_FAMILIES) % len(made)] / 255
    start = (uniform(hash64(seed, "texture place", np.arange(2))) * tile.shape).astype(int)
    rows, columns = (np.arange(length) + first for length, first in zip(size, start, strict=True))
    cut = tile[_mirrored(rows, tile.shape[0])][:, _mirrored(columns, tile.shape[1])]
    dark, light = uniform(hash64("texture colours", number, np.arange(6))).reshape(2, 3) * 0.6 + [[0], [0.4]]
    picture: Picture = np.rint((dark + cut[..., None] * (light - dark)) * 255).astype(np.uint8)
    return picture


def match_bands(picture: Picture, style: Picture) -> Picture:
    """`picture` with the bands of `style`, which has its size."""
    found = np.empty((3, *picture.shape[:2]))
    channels = zip(_OPPONENT @ _planes(picture), _OPPONENT @ _planes(style), strict=True)
    for number, (plane, wanted) in enumerate(channels):
        shape = picture.shape[:2]
        own, other = bands(plane.reshape(shape)), bands(wanted.reshape(shape))
        for place, (mine, theirs) in enumerate(zip(own, other, strict=True)):
            matched = match_values(mine, theirs)
            own[place] = (matched + theirs) / np.sqrt(2) if place < _PATTERNED else matched
        found[number] = match_values(np.sum(own, axis=0), wanted.reshape(shape))
    values = (_OPPONENT.T @ found.reshape(3, -1)).T.reshape(picture.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def bands(plane: Field) -> list[Field]:
    """Differences of Gaussians and what is left, fine to coarse; their sum is `plane`."""
    smooth = [plane, *(gaussian_filter(plane, sigma, mode="reflect") for sigma in _SIGMAS)]
    return [fine - coarse for fine, coarse in pairwise(smooth)] + [smooth[-1]]


def match_values(plane: Field, wanted: Field) -> Field:
    """The values of `wanted`, placed in the order of `plane`'s."""
    matched = np.empty(plane.size)
    matched[np.argsort(plane, axis=None, kind="stable")] = np.sort(wanted, axis=None)
    return matched.reshape(plane.shape)


@cache
def _tiles(family: str) -> tuple[Tile, ...]:
    return tiles(family, "train")


def _planes(picture: Picture) -> Field:
    return picture.reshape(-1, 3).T.astype(np.float64)


def _mirrored(places: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    """Positions on a tile that is followed by its mirror image, and so on."""
    places = places % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)
