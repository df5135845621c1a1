"""A cue64 picture from its row of draws: place, size, colours, texture, ground and cover of one shape.

Everything random about image i is row i of `draw_scenes`, a hash of (seed, split, i): pictures can be made in any
order, in any process, and a larger set begins with a smaller one. The shifted tests show the scenes of `val`.
"""

import math
from collections.abc import Callable, Sequence
from enum import IntEnum, auto
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from data.cue_ground import cover_tile, ground_tile
from data.cue_shapes import EDGE, PER_UNIT, PX_PER_UNIT, shape_fields
from data.cue_textures import SIDE as TILE_SIDE
from data.cue_textures import TEXTURES, UNSEEN, Part, tiles
from data.order import hash64, uniform

Levels = NDArray[np.float64]  # [256], one number for every grey level
Row = NDArray[np.float64]  # [NUM_DRAWS], numbers in (0, 1)

SIZE: Final = 64
_NUM_GROUNDS: Final = 8
_NUM_COVERS: Final = 4
_COVERED: Final = 0.7  # share of the scenes with something in front
_LINE: Final = 1.2  # half width of a sketch's line in pixels
_TINT: Final = 0.14  # the strongest colour's amplitude
_DEPTHS: Final[Levels] = (np.arange(256, dtype=np.float64) - EDGE) / PER_UNIT
_LEVELS: Final = np.linspace(0, 1, 256)[:, None]
PATCH: Final = 8  # side of the patches that the shuffled test moves


class Draw(IntEnum):
    """Columns of a row of draws."""

    CONGRUENT = 0
    TEXTURE = auto()
    CONFLICT = auto()
    UNSEEN = auto()
    SIZE_X = auto()
    SIZE_Y = auto()
    SHIFT_X = auto()
    SHIFT_Y = auto()
    TURN = auto()
    SHEAR = auto()
    THICKNESS = auto()
    LUMA = auto()
    SIDE = auto()
    CONTRAST = auto()
    TINT = auto()  # and 7 more: hue and strength of four tints
    TEXTURE_CONTRAST = 22
    GROUND_CONTRAST = auto()
    INVERT = auto()
    COVERED = auto()
    PIECE = auto()  # and 14 more: tile, turn, size, x, y of texture, ground and cover
    END = 41


class Canvas(NamedTuple):
    """What scenes of one part are made of; uint8 arrays, so that it travels to another process."""

    shapes: tuple[NDArray[np.uint8], ...]
    textures: tuple[tuple[NDArray[np.uint8], ...], ...]
    unseen: tuple[tuple[NDArray[np.uint8], ...], ...]
    grounds: tuple[NDArray[np.uint8], ...]
    covers: tuple[NDArray[np.uint8], ...]


def make_canvas(part: Part, *, num_classes: int) -> Canvas:
    """Tiles and shapes; about 1.5 s."""
    return Canvas(
        shape_fields(num_classes),
        tuple(tiles(name, part) for name in TEXTURES[:num_classes]),
        tuple(tiles(name, part) for name in UNSEEN) if part == "test" else (),
        tuple(ground_tile(part, number) for number in range(_NUM_GROUNDS)),
        tuple(cover_tile(part, number) for number in range(_NUM_COVERS)),
    )


def draw_scenes(images: NDArray[np.int64], *, seed: int, split: str) -> NDArray[np.float64]:
    """Rows of draws of the images with these numbers, float64 [M,Draw.END]."""
    return uniform(hash64("cue64", seed, split, images[:, None], np.arange(Draw.END)))


def shape_classes(images: NDArray[np.int64], *, num_classes: int) -> NDArray[np.int64]:
    """Labels: the classes in turn, so that any number of images has equally many of each, give or take one."""
    return images % num_classes


def texture_classes(
    labels: NDArray[np.int64], draws: NDArray[np.float64], *, correlation: float, num_classes: int
) -> NDArray[np.int64]:
    """The label's own texture with probability `correlation`, else any of all, its own included."""
    anything = (draws[:, Draw.TEXTURE] * num_classes).astype(np.int64)
    return np.where(draws[:, Draw.CONGRUENT] < correlation, labels, anything)


def conflict_classes(
    labels: NDArray[np.int64], draws: NDArray[np.float64], *, num_classes: int
) -> NDArray[np.int64]:
    """Any texture but the label's own."""
    step = 1 + (draws[:, Draw.CONFLICT] * (num_classes - 1)).astype(np.int64)
    return (labels + step) % num_classes


class Painter:
    """Makes the pictures of one part; opened once per process."""

    def __init__(self, canvas: Canvas) -> None:
        self._shapes = [Image.fromarray(field) for field in canvas.shapes]
        self._textures = [[Image.fromarray(tile) for tile in family] for family in canvas.textures]
        self._unseen = [[Image.fromarray(tile) for tile in family] for family in canvas.unseen]
        self._grounds = [Image.fromarray(tile) for tile in canvas.grounds]
        self._covers = [Image.fromarray(tile) for tile in canvas.covers]

    def scene(self, row: Row, label: int, texture: int) -> Image.Image:
        """The shape `label` filled with the texture class `texture`, on a ground."""
        return self._compose(row, label, self._textures[texture])

    def retextured(self, row: Row, label: int, family: int) -> Image.Image:
        """The same scene, filled with a texture that no training image shows."""
        return self._compose(row, label, self._unseen[family])

    def silhouette(self, row: Row, label: int) -> Image.Image:
        """The whole shape, black on white, nothing between."""
        return self._shape(row, label, lambda depth: np.where(depth > 0, 0.0, 1.0)).convert("RGB")

    def sketch(self, row: Row, label: int) -> Image.Image:
        """The whole shape's outline, a dark line on white."""
        return self._shape(row, label, lambda depth: np.abs(depth) - _LINE + 0.5).convert("RGB")

    def _compose(self, row: Row, label: int, family: Sequence[Image.Image]) -> Image.Image:
        inside = self._shape(row, label, lambda depth: depth + 0.5)
        if row[Draw.COVERED] < _COVERED:
            inside = ImageChops.subtract(inside, _piece(self._covers, row, 2))
        texture, ground = _piece(family, row, 0), _piece(self._grounds, row, 1)
        for piece, palette in zip((texture, ground), _palettes(row), strict=True):
            piece.putpalette(palette)
        return Image.composite(texture.convert("RGB"), ground.convert("RGB"), inside)

    def _shape(self, row: Row, label: int, shade: Callable[[Levels], Levels]) -> Image.Image:
        """Mode L: `shade`, cut to [0, 1], of how many pixels each point lies inside the outline (near it: 0.21 units
        is the most that a field knows).
        """
        size_x, size_y = (_between(row[d], 20.0, 28.0) for d in (Draw.SIZE_X, Draw.SIZE_Y))
        turn, shear = math.radians(_between(row[Draw.TURN], -35, 35)), _between(row[Draw.SHEAR], -0.3, 0.3)
        x, y = (SIZE / 2 + _between(row[d], -5, 5) for d in (Draw.SHIFT_X, Draw.SHIFT_Y))
        cos, sin = math.cos(turn), math.sin(turn)
        # Picture to shape: turned back, sheared back, then divided by the size.
        matrix = ((cos + shear * sin) / size_x, (sin - shear * cos) / size_x, -sin / size_y, cos / size_y)
        field = _see(self._shapes[label], matrix, (x, y), scale=PX_PER_UNIT)
        thicker = _between(row[Draw.THICKNESS], -0.04, 0.08)
        depth = (_DEPTHS + thicker) * math.sqrt(size_x * size_y)
        levels = np.rint(np.clip(shade(depth), 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(levels[np.asarray(field)])


def shuffle_patches(picture: Image.Image, order: NDArray[np.int64]) -> Image.Image:
    """The picture's PATCH x PATCH squares in another order, int [(SIZE/PATCH)^2]."""
    side = SIZE // PATCH
    patches = np.asarray(picture).reshape(side, PATCH, side, PATCH, 3).swapaxes(1, 2)
    shuffled = patches.reshape(-1, PATCH, PATCH, 3)[order].reshape(side, side, PATCH, PATCH, 3)
    return Image.fromarray(np.ascontiguousarray(shuffled.swapaxes(1, 2)).reshape(SIZE, SIZE, 3))


def patch_orders(images: NDArray[np.int64], *, seed: int, split: str) -> NDArray[np.int64]:
    """A permutation of the patches for every image, int64 [M,(SIZE/PATCH)^2]."""
    number = (SIZE // PATCH) ** 2
    return np.argsort(hash64("cue64 patches", seed, split, images[:, None], np.arange(number)), axis=1)


def _piece(family: Sequence[Image.Image], row: Row, place: int) -> Image.Image:
    """Mode L: a turned and scaled cut of one of the tiles; `place` says which draws are its own."""
    first = Draw.PIECE + 5 * place
    which, turn, size, x, y = row[first : first + 5].tolist()
    step = 1.5**size  # tile pixels per pixel of the picture, 1 to 1.5
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    room = TILE_SIDE / 2 - 0.72 * SIZE * step  # less half the cut's diagonal, and a little
    place_x, place_y = _between(x, -room, room) / step, _between(y, -room, room) / step
    # The tile's middle comes to lie as far from the picture's as the cut shall lie from the middle, turned.
    centre = (SIZE / 2 - cos * place_x - sin * place_y, SIZE / 2 + sin * place_x - cos * place_y)
    return _see(family[int(which * len(family))], (cos, -sin, sin, cos), centre, scale=step)


def _see(
    image: Image.Image,
    matrix: tuple[float, float, float, float],
    centre: tuple[float, float],
    *,
    scale: float,
) -> Image.Image:
    """`image` through scale * matrix (picture to image), its middle on `centre` of the picture; 0 outside it."""
    a, b, c, d = (scale * value for value in matrix)
    x, y = centre
    middle = image.width / 2
    return image.transform(
        (SIZE, SIZE),
        Image.Transform.AFFINE,
        (a, b, middle - a * x - b * y, c, d, middle - c * x - d * y),
        Image.Resampling.BILINEAR,
    )


def _palettes(row: Row) -> tuple[bytes, bytes]:
    """RGB of the 256 grey levels of texture and ground: two colours each, about two brightnesses that lie apart, so
    that the eye finds the shape.
    """
    luma = _between(row[Draw.LUMA], 0.22, 0.78)
    apart = _between(row[Draw.CONTRAST], 0.2, 0.42)
    behind = luma + (apart if row[Draw.SIDE] < 1 - luma else -apart)
    swing = _between(row[Draw.TEXTURE_CONTRAST], 0.12, 0.22) * (-1 if row[Draw.INVERT] < 0.5 else 1)
    ground_swing = _between(row[Draw.GROUND_CONTRAST], 0.05, 0.16)
    tints = row[Draw.TINT : Draw.TINT + 8].reshape(4, 2)
    # The three channels move by a third of a turn each, so that brightness hardly changes.
    colours = _TINT * tints[:, 1:] * np.cos(2 * np.pi * (tints[:, :1] + np.array([0, 1 / 3, 2 / 3])))
    lumas = np.array([luma - swing, luma + swing, behind - ground_swing, behind + ground_swing])
    ends = (np.clip(lumas[:, None] + colours, 0, 1) * 255).reshape(2, 2, 1, 3)
    tables = np.rint(ends[:, 0] + _LEVELS * (ends[:, 1] - ends[:, 0])).astype(np.uint8)
    return tables[0].tobytes(), tables[1].tobytes()


def _between(draw: float, low: float, high: float) -> float:
    return float(low + (high - low) * draw)
