"""One decoded picture to the uint8 array that enters a batch: random for training, fixed for evaluation.

All randomness of a sample comes from its own seed, so the result depends on nothing but (picture, settings,
seed). The operations are timm's, in PIL: random resized crop, flip, RandAugment, in that order.
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment, rand_augment_transform

from data.order import hash64, uniform

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_FILTER: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LevelFunction = Callable[[float, dict[str, object]], tuple[int]]
_CROP_TRIES: Final = 10
_RANDAUG: Final = re.compile(
    r"rand(-(m\d+|n\d+|p\d(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw)))*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSettings:
    """Training-time augmentation of one picture.

    `randaug` is timm's string, such as rand-m9-mstd0.5-inc1, or None; `magnitude` replaces its m, for recipes
    that raise the strength from epoch to epoch. `fill` colours what rotation and shear uncover: round(255 *
    mean).
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    randaug: str | None = None
    magnitude: float | None = None
    interpolation: Interpolation = "bicubic"
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale} must be (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} must be (low, high) with 0 < low <= high")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip} is not a probability; give a number from 0 to 1")
        if self.randaug is not None and not _RANDAUG.fullmatch(self.randaug):
            raise ValueError(
                f"randaug {self.randaug!r} is not timm's notation; an example is rand-m9-mstd0.5-inc1"
            )
        if self.magnitude is not None and not 0 <= self.magnitude <= 10:
            raise ValueError(f"RandAugment magnitude {self.magnitude} is outside 0..10")
        _check_interpolation(self.interpolation)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTransform:
    """How an evaluation set reaches the model's size.

    center: shorter side to floor(size / crop_pct), then the central square, as timm. squash: both sides
    straight to the size. none: the picture must have the size already (ImageNet-C). `crop_pct` counts for
    center alone.
    """

    mode: Literal["center", "squash", "none"] = "center"
    crop_pct: float = 0.875
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if self.mode not in ("center", "squash", "none"):
            raise ValueError(f"resize mode {self.mode!r} is unknown; use center, squash or none")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} must be above 0 and at most 1")
        _check_interpolation(self.interpolation)

    def apply(self, image: Image.Image, *, image_size: int) -> NDArray[np.uint8]:
        """PIL RGB -> uint8 [3,image_size,image_size]."""
        resample = _FILTER[self.interpolation]
        if self.mode == "none":
            if image.size != (image_size, image_size):
                raise ValueError(
                    f"the image is {image.width}x{image.height} but resize mode 'none' takes only "
                    f"{image_size}x{image_size}; use mode center or squash"
                )
            return _to_array(image)
        if self.mode == "squash":
            return _to_array(image.resize((image_size, image_size), resample))
        resized = _resize_shorter(image, math.floor(image_size / self.crop_pct), resample)
        return _to_array(_crop_center(resized, image_size))


def train_transform(
    image: Image.Image, settings: AugmentSettings, *, sample_seed: int, image_size: int
) -> NDArray[np.uint8]:
    """PIL RGB -> uint8 [3,image_size,image_size]; equal arguments give equal arrays."""
    numbers = uniform(hash64(sample_seed, "crop", np.arange(2 * _CROP_TRIES + 3))).tolist()
    left, top, width, height = _random_box(image, settings, numbers)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((image_size, image_size), _FILTER[settings.interpolation])
    if numbers[-1] < settings.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.randaug is not None:
        image = _rand_augment(image, _build_randaug(settings), sample_seed=sample_seed)
    return _to_array(image)


@contextmanager
def seeded_random(seed: int) -> Iterator[None]:
    """Python's global generator, which timm's operations draw from, seeded inside the block and put back
    after it.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _random_box(
    image: Image.Image, settings: AugmentSettings, numbers: list[float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height): Inception's crop as torchvision and timm do it, with given uniforms."""
    area = image.width * image.height
    log_low, log_high = (math.log(ratio) for ratio in settings.ratio)
    for attempt in range(_CROP_TRIES):
        target = area * _between(*settings.scale, numbers[2 * attempt])
        aspect = math.exp(_between(log_low, log_high, numbers[2 * attempt + 1]))
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            top = int(numbers[-3] * (image.height - height + 1))
            left = int(numbers[-2] * (image.width - width + 1))
            return left, top, width, height
    return _fallback_box(image, settings.ratio)


def _fallback_box(image: Image.Image, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box inside the ratio range. A side is at least 1, even of a 500x1 picture."""
    width, height = image.size
    if width / height < ratio[0]:
        height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        width = max(1, round(height * ratio[1]))
    return (image.width - width) // 2, (image.height - height) // 2, width, height


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * number


@lru_cache(maxsize=32)  # building takes 0.1 ms, and the settings change at most once an epoch
def _build_randaug(settings: AugmentSettings) -> RandAugment:
    assert settings.randaug is not None, "called without RandAugment"
    hparams: dict[str, object] = {"img_mean": settings.fill, "interpolation": _FILTER[settings.interpolation]}
    policy: RandAugment = rand_augment_transform(settings.randaug, hparams)
    for op in policy.ops:
        if settings.magnitude is not None:
            op.magnitude = settings.magnitude
        if op.name.startswith("Posterize"):
            op.level_fn = _keep_a_bit(op.level_fn)
    return policy


def _keep_a_bit(level_fn: _LevelFunction) -> _LevelFunction:
    """Posterize to at least one bit: level 10 asks for none, which is a black picture in Pillow 12 and an
    error in Pillow 13 (0.1 to 0.2 % of samples at m9-mstd0.5).
    """

    def clamped(level: float, hparams: dict[str, object]) -> tuple[int]:
        return (max(1, level_fn(level, hparams)[0]),)

    return clamped


def _rand_augment(image: Image.Image, policy: RandAugment, *, sample_seed: int) -> Image.Image:
    numbers = uniform(hash64(sample_seed, "ops", np.arange(policy.num_layers)))
    with seeded_random(int(hash64(sample_seed, "randaug"))):
        for op in _choose(policy, numbers):
            image = op(image)
    return image


def _choose(policy: RandAugment, numbers: NDArray[np.float64]) -> list[AugmentOp]:
    """Each layer's operation: uniform with replacement, or by weights without, as timm chooses."""
    if policy.choice_weights is None:
        return [policy.ops[int(number * len(policy.ops))] for number in numbers]
    weights, chosen = np.array(policy.choice_weights, dtype=np.float64), []
    for number in numbers:
        place = int(np.searchsorted(np.cumsum(weights) / weights.sum(), number, side="right"))
        chosen.append(policy.ops[min(place, len(weights) - 1)])
        weights[place] = 0
    return chosen


def _resize_shorter(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Shorter side to `size`, the longer one rounded down, as torchvision's Resize(size)."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    shape = (size, longer) if image.width <= image.height else (longer, size)
    return image if shape == image.size else image.resize(shape, resample)


def _crop_center(image: Image.Image, size: int) -> Image.Image:
    """The offsets round half to even, as torchvision's CenterCrop does: it matters by one pixel."""
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _check_interpolation(name: str) -> None:
    if name not in _FILTER:
        raise ValueError(f"interpolation {name!r} is unknown; use one of {', '.join(_FILTER)}")
