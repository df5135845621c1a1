"""Shape bias: of the decisions for an image's shape or for its texture, the share that is for the shape (Geirhos et al.
2019, arXiv:1811.12231).

Decisions for a third class say nothing about it and are counted apart. The classes stand in an image's name:
`shapeS_textureT/NUMBER` (cue64: class numbers), or `SHAPE1-TEXTURE2.png` (the published cue-conflict set: class names).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple, TypedDict

from engine.metrics.intervals import wilson_interval

_NUMBERED = re.compile(r"(?:.*/)?shape(\d+)_texture(\d+)/\d+")
_NAMED = re.compile(r"(?:.*/)?([a-z]+)\d+-([a-z]+)\d+(?:\.\w+)?")


class Cues(NamedTuple):
    """The classes of an image's shape and of its texture."""

    shape: int
    texture: int

    @property
    def agree(self) -> bool:
        """Whether both are one class: then the image says nothing about shape bias."""
        return self.shape == self.texture


class ShapeBias(TypedDict):
    """Counts of decisions; `value` and its 95 % Wilson interval are of `shape` among `shape` + `texture`."""

    shape: int
    texture: int
    other: int
    value: float | None  # None: no decision for either
    interval: list[float] | None


def cue_names(name: str) -> tuple[str, str] | None:
    """The names of an image's two classes, shape first; None where its name says none."""
    found = _NUMBERED.fullmatch(name) or _NAMED.fullmatch(name)
    return (found[1], found[2]) if found else None


def is_cue64(name: str) -> bool:
    """Whether the name is one of cue64's, whose cue conflicts never agree; 80 of the published 1,280 do."""
    return _NUMBERED.fullmatch(name) is not None


def shape_bias(decisions: Iterable[tuple[Cues, int]]) -> ShapeBias:
    """Of pairs (cues, predicted class); images whose cues agree are left out."""
    shape = texture = other = 0
    for cues, prediction in decisions:
        if cues.agree:
            continue
        if prediction == cues.shape:
            shape += 1
        elif prediction == cues.texture:
            texture += 1
        else:
            other += 1
    return of_counts(shape, texture, other)


def of_counts(shape: int, texture: int, other: int = 0) -> ShapeBias:
    """Of counted decisions; ValueError for a negative one."""
    if min(shape, texture, other) < 0:
        raise ValueError(f"decisions {shape}, {texture}, {other}: a count is 0 or more")
    decided = shape + texture
    return ShapeBias(
        shape=shape,
        texture=texture,
        other=other,
        value=shape / decided if decided else None,
        interval=list(wilson_interval(shape, decided)) if decided else None,
    )


def blind_to_texture(top1: float, num_classes: int) -> float:
    """The shape bias of a model that sees no texture and is right on a share `top1`, its errors spread evenly over the
    other classes: errors hit the texture's class by accident, so even here it is below 1."""
    if not 0 <= top1 <= 1 or num_classes < 2:
        raise ValueError(
            f"top1 {top1} of {num_classes} classes: needs a share from 0 to 1, 2 classes or more"
        )
    by_accident = (1 - top1) / (num_classes - 1)
    return top1 / (top1 + by_accident)
