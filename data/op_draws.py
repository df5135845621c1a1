"""RandAugment's choices of operation and strength as numbers that travel with a batch.

timm's own objects make the choices, from the seeds that `data.transform` gives them: a sample gets the same
operations, with the same strengths, whether they run here in Pillow or on the device.
"""

import math
import random
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from timm.data.auto_augment import RandAugment

from data.order import hash64, uniform
from data.transform import AugmentSettings, build_randaug, choose_ops, seeded_random

OP: Final = 0  # an Op
AMOUNT: Final = 1  # its number, see Op
MATRIX: Final = 2  # the first of six, for `data.warp`; the identity unless Op is WARP
NUM_OP_DRAWS: Final = 8  # of one layer


class Op(IntEnum):
    """What runs in a layer of RandAugment, and what AMOUNT means there."""

    NOTHING = 0
    WARP = 1
    AUTOCONTRAST = 2
    EQUALIZE = 3
    SOLARIZE = 4  # the lowest level that is inverted; 0 is timm's Invert
    SOLARIZE_ADD = 5  # what levels below 128 gain
    POSTERIZE = 6  # 2 ** (number of low bits that are cleared)
    BRIGHTNESS = 7  # factor; 1 changes nothing, here and below
    CONTRAST = 8
    COLOUR = 9
    SHARPNESS = 10
    BLUR = 11  # radius in pixels


_Matrix = tuple[float, ...]
_Row = list[float]
_NOTHING: Final[_Matrix] = (1, 0, 0, 0, 1, 0)


def draw_ops(seeds: NDArray[np.int64], settings: AugmentSettings, *, image_size: int) -> NDArray[np.float32]:
    """For samples with these seeds (int64 [N]) float32 [N, layers * NUM_OP_DRAWS], columns as named above."""
    policy = _recorder(settings, image_size)
    numbers = uniform(hash64(seeds[:, None], "ops", np.arange(policy.num_layers)))
    rows = np.empty((len(seeds), policy.num_layers, NUM_OP_DRAWS), np.float32)
    streams = hash64(seeds, "randaug").tolist()
    with seeded_random(0):
        for sample, stream in enumerate(streams):
            random.seed(stream)
            for layer, op in enumerate(choose_ops(policy, numbers[sample])):
                recorded: list[_Row] = []
                op(recorded)  # leaves the list empty where timm would leave the image
                rows[sample, layer] = recorded[0] if recorded else [Op.NOTHING, 0, *_NOTHING]
    return rows.reshape(len(seeds), -1)


def count_layers(settings: AugmentSettings) -> int:
    return int(build_randaug(settings).num_layers)


def ops_of(settings: AugmentSettings) -> frozenset[Op]:
    """Which operations the recipe's set can choose. ValueError where the device has no version of one."""
    names = {op.name for op in build_randaug(settings).ops}
    if missing := sorted(names - _AMOUNT_OF.keys() - _MATRIX_OF.keys()):
        raise ValueError(f"RandAugment's {missing[0]} has no device version; use data.randaug_on=host")
    return frozenset(Op.WARP if name in _MATRIX_OF else _AMOUNT_OF[name][0] for name in names)


@lru_cache(maxsize=32)
def _recorder(settings: AugmentSettings, image_size: int) -> RandAugment:
    """The recipe's RandAugment, whose operations append a row to the list that they get for an image."""
    policy = build_randaug.__wrapped__(settings)
    for op in policy.ops:
        op.aug_fn = partial(_record, op.name, image_size)
    return policy


def _record(name: str, size: int, recorded: list[_Row], *level_args: float, **_: Any) -> list[_Row]:
    if name in _MATRIX_OF:
        recorded.append([Op.WARP, 0, *_MATRIX_OF[name](level_args[0], size)])
    else:
        op, amount = _AMOUNT_OF[name]
        recorded.append([op, amount(*level_args), *_NOTHING])
    return recorded


def _rotation(degrees: float, size: int) -> _Matrix:
    """Image.rotate's: about the centre, rounded to 15 digits."""
    angle, centre = -math.radians(degrees % 360.0), size / 2
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = centre - cosine * centre - sine * centre, centre + sine * centre - cosine * centre
    return cosine, sine, x, -sine, cosine, y


def _same(amount: float = 0.0) -> float:
    return amount


_MATRIX_OF: Final[dict[str, Callable[[float, int], _Matrix]]] = {
    "Rotate": _rotation,
    "ShearX": lambda factor, size: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, size: (1, 0, 0, factor, 1, 0),
    "TranslateXRel": lambda share, size: (1, 0, share * size, 0, 1, 0),
    "TranslateYRel": lambda share, size: (1, 0, 0, 0, 1, share * size),
}
_AMOUNT_OF: Final[dict[str, tuple[Op, Callable[..., float]]]] = {
    "AutoContrast": (Op.AUTOCONTRAST, _same),
    "Equalize": (Op.EQUALIZE, _same),
    "Invert": (Op.SOLARIZE, _same),
    "SolarizeAdd": (Op.SOLARIZE_ADD, _same),
    "Desaturate": (Op.COLOUR, lambda amount: min(1.0, max(0.0, 1.0 - amount))),
    "GaussianBlur": (Op.BLUR, _same),
    **dict.fromkeys(("Solarize", "SolarizeIncreasing"), (Op.SOLARIZE, _same)),
    **dict.fromkeys(
        ("Posterize", "PosterizeIncreasing"), (Op.POSTERIZE, lambda bits: 2.0 ** (8 - min(bits, 8)))
    ),
    **dict.fromkeys(("Brightness", "BrightnessIncreasing"), (Op.BRIGHTNESS, _same)),
    **dict.fromkeys(("Contrast", "ContrastIncreasing"), (Op.CONTRAST, _same)),
    **dict.fromkeys(("Color", "ColorIncreasing"), (Op.COLOUR, _same)),
    **dict.fromkeys(("Sharpness", "SharpnessIncreasing"), (Op.SHARPNESS, _same)),
}
