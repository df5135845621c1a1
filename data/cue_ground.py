"""What lies behind and in front of a cue64 shape: grounds with clutter and sparse cover, as grey tiles; no class."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from data.order import hash64, uniform

Tile = NDArray[np.uint8]  # [SIDE,SIDE]

SIDE: Final = 224
_FINER: Final = 2  # pieces are drawn this much larger
_NUM_PIECES: Final = 110  # of clutter in a ground
_NUM_COVERS: Final = 26  # pieces in front, in a tile


def ground_tile(part: str, number: int) -> Tile:
    """Soft light and shade with flat overlapping pieces on it: triangles, bars, many-cornered ones."""
    soft = gaussian_filter(_draws(part, number, "soft", SIDE * SIDE).reshape(SIDE, SIDE), 12, mode="wrap")
    shade = np.rint((soft - soft.min()) / (soft.max() - soft.min()) * 255).astype(np.uint8)
    canvas = Image.fromarray(shade).resize((SIDE * _FINER, SIDE * _FINER), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    for piece in range(_NUM_PIECES):
        draws = _draws(part, number, f"piece {piece}", 12)
        pen.polygon(_corners(draws), fill=int(256 * draws[11]))
    return np.asarray(canvas.reduce(_FINER))


def cover_tile(part: str, number: int) -> Tile:
    """255 where something lies in front, about a tenth of the tile."""
    canvas = Image.new("L", (SIDE * _FINER, SIDE * _FINER))
    pen = ImageDraw.Draw(canvas)
    for piece in range(_NUM_COVERS):
        pen.polygon(_corners(_draws(part, number, f"cover {piece}", 12)), fill=255)
    return np.asarray(canvas.reduce(_FINER))


def _corners(draws: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Of a piece with 3 to 5 corners, 6 to 18 px from its middle, flattened up to a quarter and turned."""
    number = 3 + int(3 * draws[2])
    angles = 2 * np.pi * (np.arange(number) + 0.7 * draws[4 : 4 + number]) / number
    reach, turn = _FINER * (6 + 12 * draws[3]), np.pi * draws[10]
    along, across = reach * np.cos(angles), (0.2 + 0.8 * draws[9]) * reach * np.sin(angles)
    middle_x, middle_y = SIDE * _FINER * draws[:2]
    x = middle_x + along * np.cos(turn) - across * np.sin(turn)
    y = middle_y + along * np.sin(turn) + across * np.cos(turn)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _draws(part: str, number: int, purpose: str, count: int) -> NDArray[np.float64]:
    return uniform(hash64("cue64 ground", part, number, purpose, np.arange(count)))
