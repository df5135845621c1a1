"""The texture classes of cue64 as grey tiles, from which every image cuts, turns, scales and colours its own piece.

A class is a family: its tiles differ in period, proportions and phase. Training and tests have tiles of their own, and
the re-textured test has families of its own. Pictures of one tile set are equal wherever they are made.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data.cue_photos import photo_field
from data.cue_turing import LABYRINTH, SPOTS, Reaction, turing_field
from data.order import hash64, uniform

Part = Literal["train", "test"]
Tile = NDArray[np.uint8]  # [SIDE,SIDE]
Field = NDArray[np.float64]

SIDE: Final = 224  # a turned and enlarged cut of 64 px spans at most 128
_NUM_TILES: Final = 4
_NUM_TILES_TURING: Final = 1  # a torus has no preferred place or direction, and takes 0.4 s
_TAILS: Final = (
    2.0  # per cent of a tile's values that are cut at either end, so that all have the same contrast
)


class Draws(NamedTuple):
    """Where a tile's numbers come from: equal names give equal numbers."""

    family: str
    part: str
    number: int

    def values(self, low: float, high: float, purpose: str) -> float:
        hashed = hash64("cue64 tile", self.family, self.part, self.number, purpose)
        return float(low + (high - low) * uniform(hashed))

    def noise(self, purpose: str, *shape: int) -> Field:
        """Independent uniform numbers in (0, 1)."""
        hashed = hash64("cue64 tile", self.family, self.part, self.number, purpose, np.arange(np.prod(shape)))
        return uniform(hashed).reshape(shape)


def tiles(family: str, part: Part) -> tuple[Tile, ...]:
    """All tiles of one family that a part uses; those of the other part show nothing of them."""
    number = _NUM_TILES_TURING if family in ("spots", "labyrinth") else _NUM_TILES
    return tuple(_to_tile(FAMILIES[family](Draws(family, part, n))) for n in range(number))


def _to_tile(field: Field) -> Tile:
    low, high = np.percentile(field, [_TAILS, 100 - _TAILS])
    tile: Tile = np.clip(np.rint((field - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    return tile


def _grid() -> tuple[Field, Field]:
    y, x = np.indices((SIDE, SIDE), dtype=np.float64)
    return y, x


def _soft(distance: Field) -> Field:
    """0 to 1 across an edge one pixel wide."""
    return np.clip(distance + 0.5, 0, 1)


def _to_edge(phase: Field, period: float, share: float) -> Field:
    """Pixels inside bars that fill `share` of every period."""
    return period * (share / 2 - np.abs(phase - np.floor(phase) - 0.5))


def _blur(field: Field, sigma: float | tuple[float, float]) -> Field:
    blurred: Field = gaussian_filter(field, sigma, mode="wrap")
    return blurred


def _stripes(draws: Draws) -> Field:
    _, x = _grid()
    period = draws.values(6, 9, "period")
    return _soft(_to_edge(x / period, period, draws.values(0.4, 0.6, "share")))


def _checker(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(9, 13, "period")
    across = _soft(_to_edge(x / period, period, 0.5))
    down = _soft(_to_edge(y / (period * draws.values(0.8, 1.25, "aspect")), period, 0.5))
    return across + down - 2 * across * down


def _dots(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(7, 10, "period")
    row = np.floor(y / period)
    dx = x / period + 0.5 * row
    dy = y / period - row - 0.5
    distance = np.hypot(dx - np.floor(dx) - 0.5, dy)
    return _soft(period * (draws.values(0.26, 0.34, "radius") - distance))


def _clouds(draws: Draws) -> Field:
    sigma = draws.values(2.2, 3.2, "sigma")
    coarse = _blur(draws.noise("coarse", SIDE, SIDE), sigma)
    fine = _blur(draws.noise("fine", SIDE, SIDE), sigma / 3)
    return coarse + 0.1 * fine


def _grain(draws: Draws) -> Field:
    return _blur(draws.noise("grain", SIDE, SIDE), draws.values(0.5, 0.8, "sigma"))


def _gabor(draws: Draws, shortest: float, longest: float) -> Field:
    """Gabor noise (Lagae et al. 2009) of one direction: noise in a Gaussian envelope on a carrier wave."""
    _, x = _grid()
    length = draws.values(shortest, longest, "length")
    turns = 2 * np.pi * x / length
    inphase, quadrature = (
        _blur(draws.noise(name, SIDE, SIDE) - 0.5, (length, 0.7 * length))
        for name in ("inphase", "quadrature")
    )
    return inphase * np.cos(turns) + quadrature * np.sin(turns)


def _weave(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(10, 14, "period")
    over = (np.floor(x / period) + np.floor(y / period)) % 2
    along = np.where(over == 1, x, y) / period * 3
    return _soft(_to_edge(along, period / 3, draws.values(0.5, 0.7, "share")))


def _scales(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(9, 12, "period")
    best = np.zeros_like(x)
    for row in range(int(2 * SIDE / period) + 3):
        dx = x / period + 0.5 * (row % 2)
        distance = np.hypot(dx - np.floor(dx) - 0.5, y / period - row / 2 + 0.5)
        best = np.where(distance < 0.58, distance, best)
    return _soft(period * (draws.values(0.4, 0.44, "rim") - best))


def _dashes(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(5, 7, "period")
    row = np.floor(y / period)
    long = 2.6 * period
    shift = draws.noise("shift", SIDE)[np.clip(row, 0, SIDE - 1).astype(np.int64)]
    bar = _soft(_to_edge(y / period, period, 0.55))
    return bar * _soft(_to_edge(x / long + shift, long, draws.values(0.6, 0.75, "share")))


def _cells(draws: Draws) -> Field:
    first, second = _nearest_two(draws, draws.values(9, 12, "pitch"))
    return np.clip((second - first) / 3.0, 0, 1)


def _nearest_two(draws: Draws, pitch: float) -> tuple[Field, Field]:
    """Distances in pixels to the nearest and second nearest of points scattered one per square of a grid."""
    y, x = _grid()
    count = int(SIDE / pitch) + 4
    jitter = draws.noise("points", 2, count, count)
    row, column = np.floor(y / pitch).astype(np.int64) + 1, np.floor(x / pitch).astype(np.int64) + 1
    first = np.full_like(x, np.inf)
    second = first.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = row + dy, column + dx
            distance = np.hypot(
                (r - 1 + jitter[0, r, c]) * pitch - y,
                (c - 1 + jitter[1, r, c]) * pitch - x,
            )
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    return first, second


def _zigzag(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(6, 8, "period")
    wave = x / (1.6 * period)
    kink = 0.8 * period * np.abs(wave - np.floor(wave) - 0.5) * 2
    return _soft(_to_edge((y + kink) / period, period, 0.5))


def _pluses(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(9, 12, "period")
    row = np.floor(y / period)
    dx = np.abs((x / period + 0.5 * row) % 1 - 0.5)
    dy = np.abs(y / period % 1 - 0.5)
    inside = np.maximum(
        np.minimum(0.38 - dx, 0.13 - dy),
        np.minimum(0.13 - dx, 0.38 - dy),
    )
    return _soft(period * inside)


def _triangles(draws: Draws) -> Field:
    y, x = _grid()
    period = draws.values(10, 14, "period")
    u, v = x / period + 0.5 * y / period, y / period
    return _soft(period * (u % 1 + v % 1 - 1) / np.sqrt(2))


def _wood(draws: Draws) -> Field:
    _, x = _grid()
    period = draws.values(5, 7, "period")
    bend = _blur(draws.noise("bend", SIDE, SIDE) - 0.5, (18, 6))
    return np.asarray((x / period + 5 * bend / bend.std() / 6) % 1)


def _rings(draws: Draws) -> Field:
    first, _ = _nearest_two(draws, draws.values(22, 28, "pitch"))
    period = draws.values(4.5, 6, "period")
    return _soft(_to_edge(first / period, period, 0.5))


def _turing(draws: Draws, reaction: Reaction) -> Field:
    """A torus of half the side, four times: a quarter of the cost."""
    side = SIDE // 2
    return np.tile(turing_field(reaction, side=side, seed=draws.noise("seed", side, side)), (2, 2))


def _photo(draws: Draws) -> Field:
    return photo_field(draws.family, is_train=draws.part == "train", number=draws.number, side=SIDE)


FAMILIES: Final[dict[str, Callable[[Draws], Field]]] = {
    "gravel": _photo,
    "stripes": _stripes,
    "spots": partial(_turing, reaction=SPOTS),
    "grass": _photo,
    "checker": _checker,
    "labyrinth": partial(_turing, reaction=LABYRINTH),
    "brick": _photo,
    "clouds": _clouds,
    "weave": _weave,
    "gabor-fine": partial(_gabor, shortest=3.5, longest=4.5),
    "cells": _cells,
    "gabor-coarse": partial(_gabor, shortest=8.0, longest=10.0),
    "dots": _dots,
    "grain": _grain,
    "scales": _scales,
    "dashes": _dashes,
    "zigzag": _zigzag,
    "pluses": _pluses,
    "triangles": _triangles,
    "wood": _wood,
    "rings": _rings,
}
UNSEEN: Final = ("zigzag", "pluses", "triangles", "wood", "rings")  # in the re-textured test alone
TEXTURES: Final = tuple(name for name in FAMILIES if name not in UNSEEN)  # texture k belongs to shape k
