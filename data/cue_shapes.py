"""The shape classes of cue64 as distance fields: silhouettes and glyphs from outlines of our own, so that no font file
is needed and every machine draws the same.

Shapes lie within [-0.95, 0.95]^2, y downwards. A field says for every point how far it lies inside the outline; a soft
edge of any size, a thicker or thinner shape and an outline drawing are then one look-up table away.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

Points = tuple[tuple[float, float], ...]
Field = NDArray[np.uint8]  # [SIDE,SIDE]: EDGE + distance inside the outline * PER_UNIT, cut to 0..255

SIDE: Final = 256
PX_PER_UNIT: Final = 100.0  # of a field
PER_UNIT: Final = 600.0  # grey levels per unit of distance: 0..255 reach 0.21 units to both sides
EDGE: Final = 127.5
_FINER: Final = 4  # outlines are drawn this much larger
_PEN: Final = 0.38  # a glyph's stroke width in units


class Outline(NamedTuple):
    """Polygons and pen strokes, less the holes."""

    name: str
    fills: Sequence[Points] = ()
    strokes: Sequence[Points] = ()
    holes: Sequence[Points] = ()


def _arc(x: float, y: float, radius: float, start: float, end: float) -> Points:
    """Points of a circle's arc, angles in degrees from +x towards +y (clockwise as seen)."""
    angles = np.radians(np.linspace(start, end, 1 + max(4, round(abs(end - start) / 8))))
    return tuple(
        zip((x + radius * np.cos(angles)).tolist(), (y + radius * np.sin(angles)).tolist(), strict=True)
    )


def _disc(x: float, y: float, radius: float, *, squash: float = 1.0) -> Points:
    return tuple((px, y + squash * (py - y)) for px, py in _arc(x, y, radius, 0, 360))


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5
    return tuple(zip((x / 18).tolist(), (y / 18).tolist(), strict=True))


def _star() -> Points:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 0.95, 0.42)
    return tuple(
        zip((radii * np.cos(angles)).tolist(), (radii * np.sin(angles) + 0.07).tolist(), strict=True)
    )


# Silhouettes and glyphs in turn, so that any number of classes has both.
OUTLINES: Final = (
    Outline("heart", fills=(_heart(),)),
    Outline(
        "e",
        strokes=(
            ((-0.46, -0.9), (-0.46, 0.9)),
            *(((-0.46, y), (x, y)) for y, x in ((-0.76, 0.62), (0, 0.5), (0.76, 0.62))),
        ),
    ),
    Outline("fish", fills=(_disc(-0.2, 0, 0.72, squash=0.62), ((0.25, 0), (0.92, -0.55), (0.92, 0.55)))),
    Outline(
        "k",
        strokes=(
            ((-0.5, -0.9), (-0.5, 0.9)),
            ((-0.45, 0.12), (0.55, -0.85)),
            ((-0.12, -0.15), (0.62, 0.85)),
        ),
    ),
    Outline("star", fills=(_star(),)),
    Outline("four", strokes=(((0.3, 0.92), (0.3, -0.78), (-0.66, 0.38), (0.76, 0.38)),)),
    Outline(
        "arrow",
        fills=(
            (
                (-0.92, -0.2),
                (0.1, -0.2),
                (0.1, -0.62),
                (0.94, 0),
                (0.1, 0.62),
                (0.1, 0.2),
                (-0.92, 0.2),
            ),
        ),
    ),
    Outline("a", strokes=(((-0.7, 0.92), (0, -0.78), (0.7, 0.92)), ((-0.45, 0.36), (0.45, 0.36)))),
    Outline(
        "key",
        fills=(
            _disc(-0.52, 0, 0.42),
            ((-0.2, -0.13), (0.94, -0.13), (0.94, 0.13), (-0.2, 0.13)),
            ((0.7, 0), (0.94, 0), (0.94, 0.5), (0.7, 0.5)),
            ((0.3, 0), (0.52, 0), (0.52, 0.4), (0.3, 0.4)),
        ),
        holes=(_disc(-0.54, 0, 0.17),),
    ),
    Outline("s", strokes=(_arc(0, -0.39, 0.39, -25, -270) + _arc(0, 0.39, 0.39, -90, 155),)),
    Outline(
        "house",
        fills=(
            ((-0.92, -0.1), (0, -0.88), (0.92, -0.1)),
            ((-0.66, -0.15), (0.66, -0.15), (0.66, 0.85), (-0.66, 0.85)),
        ),
        holes=(((-0.2, 0.25), (0.2, 0.25), (0.2, 0.9), (-0.2, 0.9)),),
    ),
    Outline(
        "h", strokes=(((-0.52, -0.9), (-0.52, 0.9)), ((0.52, -0.9), (0.52, 0.9)), ((-0.52, 0), (0.52, 0)))
    ),
    Outline("crescent", fills=(_disc(-0.05, 0, 0.9),), holes=(_disc(0.36, -0.08, 0.72),)),
    Outline(
        "two", strokes=((*_arc(0, -0.36, 0.44, -170, 25), (-0.52, 0.76), (0.62, 0.76)),)
    ),  # a pen from the hook to the foot
    Outline(
        "bolt",
        fills=(
            (
                (0.3, -0.94),
                (-0.56, 0.12),
                (-0.06, 0.12),
                (-0.3, 0.94),
                (0.56, -0.24),
                (0.06, -0.24),
            ),
        ),
    ),
    Outline(
        "tree",
        fills=(
            ((0, -0.94), (-0.46, -0.3), (0.46, -0.3)),
            ((0, -0.55), (-0.62, 0.15), (0.62, 0.15)),
            ((0, -0.1), (-0.78, 0.62), (0.78, 0.62)),
            ((-0.15, 0.55), (0.15, 0.55), (0.15, 0.94), (-0.15, 0.94)),
        ),
    ),
)
SHAPES: Final = tuple(outline.name for outline in OUTLINES)


def shape_fields(num_classes: int) -> tuple[Field, ...]:
    """The first `num_classes` shapes; about 20 ms each."""
    return tuple(_field(outline) for outline in OUTLINES[:num_classes])


def _field(outline: Outline) -> Field:
    inside = _raster(outline)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    # Distances are between pixel centres: the edge lies half a pixel before the first one outside.
    units = (distance - np.where(inside, 0.5, -0.5)) / PX_PER_UNIT
    field: Field = np.clip(np.rint(EDGE + PER_UNIT * units), 0, 255).astype(np.uint8)
    return field


def _raster(outline: Outline) -> NDArray[np.bool_]:
    canvas = Image.new("L", (SIDE * _FINER, SIDE * _FINER))
    pen = ImageDraw.Draw(canvas)
    for polygon in outline.fills:
        pen.polygon(_to_px(polygon), fill=255)
    for stroke in outline.strokes:
        pen.line(_to_px(stroke), fill=255, width=round(_PEN * PX_PER_UNIT * _FINER), joint="curve")
    for polygon in outline.holes:
        pen.polygon(_to_px(polygon), fill=0)
    return np.asarray(canvas.reduce(_FINER)) >= 128


def _to_px(points: Points) -> list[tuple[float, float]]:
    scale = PX_PER_UNIT * _FINER
    return [(SIDE * _FINER / 2 + scale * x, SIDE * _FINER / 2 + scale * y) for x, y in points]
