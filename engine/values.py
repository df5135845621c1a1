"""The types a recipe's fields are made of: radii, ranges, schedules, and the line that refuses a wrong value.

Types are strict: no text becomes a number, no number becomes text; only a whole number may stand for a float.
"""

import re
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationInfo,
)

T = TypeVar("T")


def _fraction(value: object) -> object:
    """ "4/255" as the float it is; anything else as it came."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"\s*(-?){number}\s*/\s*{number}\s*", value) if isinstance(value, str) else None
    if match is None or float(match[3]) == 0.0:
        return value
    return float(match[1] + match[2]) / float(match[3])


def _radius(value: object, info: ValidationInfo) -> object:
    """A radius or step in pixel units; a linf one is in [0, 1], and a whole number the papers' 0..255 unit.

    A length in l2 or l1 above 1 is an ordinary one, so this needs the `norm` of the section, which stands before.
    """
    number = _fraction(value)
    if (
        info.data.get("norm") in ("l2", "l1")
        or isinstance(number, bool)
        or not isinstance(number, (int, float))
    ):
        return number
    if isinstance(value, str) and number > 1:
        raise ValueError(f"is {value!r}, but must be less than or equal to 1; images live in [0, 1]")
    if number > 1 or (isinstance(number, int) and number >= 1):
        raise ValueError(f"is {value}, but images and radii live in [0, 1]; likely meant: {value:g}/255")
    return number


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"is {list(pair)}, but must be two positive numbers, the lower first; swap them")
    return pair


def _in_order(points: tuple[tuple[int, T], ...]) -> tuple[tuple[int, T], ...]:
    """A schedule has no gap: its first point is epoch 0 and every later point comes after the one before."""
    epochs = [epoch for epoch, _ in points]
    if not epochs or epochs[0] != 0:
        raise ValueError(f"has points at epochs {epochs}, but must begin at epoch 0; add [0, VALUE] in front")
    if any(after <= before for before, after in pairwise(epochs)):
        raise ValueError(
            f"has points at epochs {epochs}, but each must come after the last; sort them, drop repeats"
        )
    return points


def _argument(value: object) -> object:
    """A scalar, or a flat list of them as a tuple."""
    scalars = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if strange := [each for each in scalars if not isinstance(each, (bool, int, float, str))]:
        raise ValueError(
            f"is {strange[0]!r}, but a model argument is a number, true, false or text, or a list of these; "
            "write one of them"
        )
    return scalars if isinstance(value, (list, tuple)) else value


def _four_strengths(value: object) -> object:
    """One number is of brightness, contrast and saturation alike, as in timm; three leave the hue as it is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (value, value, value, 0.0)
    return (*value, 0.0) if isinstance(value, (list, tuple)) and len(value) == 3 else value


def _shards(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"is {value!r}, but must be a number of shards from 1, or all; write one such as 64")


# YAML has lists and no tuples, so the outermost type is taken leniently; what is inside stays strict.
Number = Annotated[float, BeforeValidator(_fraction)]
Range = Annotated[tuple[Number, Number], Field(strict=False), AfterValidator(_rising)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[BelowOne, BelowOne], Field(strict=False)]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Spread = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]
JitterStrengths = Annotated[
    tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Annotated[float, Field(ge=0, le=0.5)]],
    Field(strict=False),
    BeforeValidator(_four_strengths),
]
Radius = Annotated[float, BeforeValidator(_fraction), Field(ge=0)]
PositiveRadius = Annotated[float, BeforeValidator(_radius), Field(gt=0)]  # in a section with `norm`
Magnitude = Annotated[float, Field(ge=0, le=10)]
Scalar = bool | int | float | str
ModelArgument = Annotated[Scalar | tuple[Scalar, ...], BeforeValidator(_argument)]
Epoch = NonNegativeInt
Window = Annotated[int | Literal["all"], BeforeValidator(_shards)]
Points = Annotated[
    tuple[Annotated[tuple[Epoch, T], Field(strict=False)], ...],
    Field(strict=False),
    AfterValidator(_in_order),
]


class Section(BaseModel):
    """A frozen group of fields that refuses keys it does not know, and nan and infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
