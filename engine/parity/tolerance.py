"""How far two backends may be apart, and why.

    kind             float32   bf16    of what, and why so much
    batch            equal     equal   made on the host, from integers and seeds alone
    image, target    1e-6      1e-6    relative length; float32 in either precision, a handful of operations. Of images
    attack start     1e-6      1e-6      also up to 1e-3 of the pixels: whole levels that a rounding decides
    attack logits    1e-4      5e-2    as activations
    attack gradient  1e-3      0.3     of the image, in the attack's first step; as gradients
    attacked         1e-2      0.3     share of the pixels: the step takes a gradient's sign, and where that is within
                                       rounding of zero, both signs are right
    activation       1e-4      5e-2    relative length; each layer rounds at 6e-8 (bf16: 4e-3), and a deep network adds
                                       and amplifies that a hundred times (bf16: ten times)
    loss             1e-5      2e-2    relative
    gradient         1e-3      0.3     relative length, of a parameter; roundings of both passes
    clipped          1e-4      1e-4    behind the clipping, from the same gradients: float32 in either precision
    statistics       1e-3      5e-2    of the change in the step: batch means of activations
    update           1e-4      1e-4    of the change, from the same gradients: float32 in either precision
    average          1e-4      1e-4    of the change, which follows the weights'

A change is known no better than float32 has what it is a change of: ROUNDINGS of its norm are added. A gradient that
should be zero (of a bias before BatchNorm, of attention's keys) is rounding alone: NOISE of the largest gradient is
added. Where activations or pooling have kinks (ReLU), gradients may be KINKS times as far apart: an activation within
rounding of zero has either gradient, and that of an image is then another one; one step in ten had such a one, of 6e-3
at most, on quickstart's small_cnn. Float32 that is bf16 inside on one side alone is a divergence of any size.
fp16 counts as bf16 here.
"""

import math
from collections.abc import Sequence
from typing import Final

from bits.environment import Precision
from engine.parity.mark import Distance, Kind, Mark, is_rounded_to_bf16

TOLERANCES: Final[dict[Kind, tuple[float, float]]] = {
    "batch": (0.0, 0.0),
    "image": (1e-6, 1e-6),
    "target": (1e-6, 1e-6),
    "attack start": (1e-6, 1e-6),
    "attack logits": (1e-4, 5e-2),
    "attack gradient": (1e-3, 0.3),
    "attacked": (1e-2, 0.3),
    "activation": (1e-4, 5e-2),
    "loss": (1e-5, 2e-2),
    "statistics": (1e-3, 5e-2),
    "gradient": (1e-3, 0.3),
    "clipped": (1e-4, 1e-4),
    "update": (1e-4, 1e-4),
    "average": (1e-4, 1e-4),
}
PIXELS: Final = 1e-3  # share of an image's values that may be another level
ROUNDINGS: Final = 4 * 2.0**-24
NOISE: Final = (1e-6, 1e-2)  # of the largest gradient's norm
KINKS: Final = (20.0, 2.0)
KINKED: Final = ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "Hardswish", "Hardsigmoid", "Hardtanh", "MaxPool2d")
HIDDEN: Final = 1e-5  # relative length of a difference that rounding to bf16 inside float32 makes at least


class Tolerance:
    """For one step of two sides in `precision`."""

    def __init__(self, precision: Precision, reference: Sequence[Mark]) -> None:
        self._column = 0 if precision == "float32" else 1
        gradients = [mark.norm for mark in reference if mark.kind == "gradient"]
        self.has_kinks = any(mark.maker.partition("(")[0] in KINKED for mark in reference)
        self._noise = NOISE[self._column] * max(gradients, default=0.0)

    def of(self, kind: Kind) -> float:
        """As the table says."""
        return TOLERANCES[kind][self._column]

    def allowed(self, reference: Mark) -> float:
        """Length of the difference to `reference` that is no divergence."""
        kinks = (
            KINKS[self._column]
            if self.has_kinks and reference.kind in ("gradient", "attack gradient")
            else 1.0
        )
        noise = self._noise if reference.kind == "gradient" else 0.0
        return kinks * self.of(reference.kind) * reference.norm + ROUNDINGS * reference.beside + noise

    def holds(self, reference: Mark, other: Mark, found: Distance) -> bool:
        """Whether the two agree."""
        if reference.kind == "attacked":
            return found.share <= self.of("attacked")
        if reference.kind in ("image", "attack start") and found.share <= PIXELS:
            return found.length < math.inf
        is_float32 = self._column == 0
        if (
            is_float32
            and found.relative > HIDDEN
            and is_rounded_to_bf16(reference) != is_rounded_to_bf16(other)
        ):
            return False
        return found.length <= self.allowed(reference)
