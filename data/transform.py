"""One picture to the uint8 array that enters a batch: random for training, fixed for evaluation.

All randomness of a sample comes from its own seed, so the result depends on nothing but (picture, settings,
seed). The operations are timm's: random resized crop, flip, RandAugment and colour jitter (in PIL), in that order.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment, rand_augment_transform

from data.crop import NUM_CROP_NUMBERS, Box, center_box, random_box, shorter_to
from data.decode import Denominator, Picture
from data.erase import Erase
from data.jitter import Jitter
from data.order import hash64, uniform
from data.resize import (
    FILTER,
    Interpolation,
    check_interpolation,
    has_torch_filter,
    resize_torch,
    resize_window,
)

_LevelFunction = Callable[[float, dict[str, object]], tuple[int]]
_RANDAUG: Final = re.compile(
    r"rand(-(m\d+|n\d+|p\d(\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3a|3aw)))*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSettings:
    """Training-time augmentation of one picture.

    `randaug` is timm's string, such as rand-m9-mstd0.5-inc1, or None; `magnitude` replaces its m, for recipes
    that raise the strength from epoch to epoch. `fill` colours what rotation and shear uncover: round(255 *
    mean). RandAugment and then colour jitter run where `randaug_on` and `jitter_on` say, erasing on the device; see
    `data.augment`. timm leaves colour jitter out beside RandAugment; here it is on whenever it is given.

    `resampler` pillow gives timm's pixels to the bit, torch a level beside them at most (`data.resize`). `decode`
    scaled reduces crops of JPEGs that are at least twice too large while they are decoded. All of these are
    settings, and never a consequence of what a machine has, because they change pixels.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    randaug: str | None = None
    magnitude: float | None = None
    interpolation: Interpolation = "bicubic"
    resampler: Literal["torch", "pillow"] = "torch"
    decode: Literal["full", "scaled"] = "full"
    apply_exif: bool = False
    fill: tuple[int, int, int] = (124, 116, 104)
    randaug_on: Literal["host", "device"] = "host"
    jitter: Jitter | None = None
    jitter_on: Literal["host", "device"] = "host"
    erase: Erase | None = None

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
        if self.randaug_on not in ("host", "device"):
            raise ValueError(f"randaug_on {self.randaug_on!r} is unknown; use host or device")
        if self.jitter_on not in ("host", "device"):
            raise ValueError(f"jitter_on {self.jitter_on!r} is unknown; use host or device")
        if self.host_jitter is not None and self.device_randaug is not None:
            raise ValueError(
                "jitter_on host and randaug_on device contradict each other: colour jitter comes after RandAugment; "
                "use jitter_on=device"
            )
        if self.resampler not in ("torch", "pillow"):
            raise ValueError(f"resampler {self.resampler!r} is unknown; use torch or pillow")
        if self.decode not in ("full", "scaled"):
            raise ValueError(f"decode {self.decode!r} is unknown; use full or scaled")
        if self.decode == "scaled" and self.resampler == "pillow":
            raise ValueError(
                "decode scaled and resampler pillow contradict each other: pixels are timm's or quick"
            )
        check_interpolation(self.interpolation)

    @property
    def host_randaug(self) -> str | None:
        return self.randaug if self.randaug_on == "host" else None

    @property
    def device_randaug(self) -> str | None:
        return self.randaug if self.randaug_on == "device" else None

    @property
    def host_jitter(self) -> Jitter | None:
        return self.jitter if self.jitter_on == "host" else None

    @property
    def device_jitter(self) -> Jitter | None:
        return self.jitter if self.jitter_on == "device" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTransform:
    """How an evaluation set reaches the model's size.

    center: shorter side to floor(size / crop_pct), then the central square, as timm. squash: both sides
    straight to the size. none: the picture must have the size already (ImageNet-C). `crop_pct` counts for
    center alone. `border` px are cut off all around first (ObjectNet's frame). Pixels are those of timm with the
    installed Pillow, to the bit.
    """

    mode: Literal["center", "squash", "none"] = "center"
    crop_pct: float = 0.875
    interpolation: Interpolation = "bicubic"
    apply_exif: bool = False
    border: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("center", "squash", "none"):
            raise ValueError(f"resize mode {self.mode!r} is unknown; use center, squash or none")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} must be above 0 and at most 1")
        if self.border < 0:
            raise ValueError(f"border {self.border} must be 0 px or more")
        check_interpolation(self.interpolation)

    def apply(
        self, picture: Picture, *, image_size: int, into: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """uint8 [3,image_size,image_size]: `into`, if that is given."""
        into = _room(image_size) if into is None else into
        width, height = picture.width - 2 * self.border, picture.height - 2 * self.border
        if min(width, height) < 1:
            raise ValueError(
                f"the image is {picture.width}x{picture.height}: nothing is left inside a border of {self.border} px"
            )
        whole = Box(self.border, self.border, width, height)
        new_size, window = (image_size, image_size), Box(0, 0, image_size, image_size)
        if self.mode == "none" and (width, height) != new_size:
            raise ValueError(
                f"the image is {width}x{height} but resize mode 'none' takes only "
                f"{image_size}x{image_size}; use mode center or squash"
            )
        if self.mode == "center":
            new_size = shorter_to(width, height, math.floor(image_size / self.crop_pct))
            window = center_box(*new_size, image_size)
        interpolation = self.interpolation
        resize_window(picture, whole, new_size, window=window, interpolation=interpolation, into=into)
        return into


def crop_numbers(seeds: NDArray[np.int64]) -> NDArray[np.float64]:
    """What decides crop and flip of the samples with these seeds (int64 [N]): float64 [N,NUM_CROP_NUMBERS+1]."""
    return uniform(hash64(seeds[:, None], "crop", np.arange(NUM_CROP_NUMBERS + 1)))


def train_transform(
    picture: Picture,
    settings: AugmentSettings,
    *,
    sample_seed: int,
    image_size: int,
    numbers: Sequence[float] | None = None,
    into: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """uint8 [3,image_size,image_size]: `into`, if that is given. Equal arguments give equal arrays.

    `numbers`: those of `crop_numbers` for this seed; a caller that has a batch makes them at once.
    """
    if numbers is None:
        numbers = crop_numbers(np.array([sample_seed]))[0].tolist()
    into = _room(image_size) if into is None else into
    box = random_box(
        picture.width, picture.height, scale=settings.scale, ratio=settings.ratio, numbers=numbers
    )
    _crop(picture, box, settings, into=into, is_mirrored=numbers[-1] < settings.flip)
    if settings.host_randaug is not None or settings.host_jitter is not None:
        # Planes are handed over one by one: an interleaved copy would cost five times as much.
        image = Image.merge("RGB", [Image.fromarray(plane) for plane in into])
        if settings.host_randaug is not None:
            image = _rand_augment(image, build_randaug(settings), sample_seed=sample_seed)
        if settings.host_jitter is not None:
            image = settings.host_jitter.on_picture(image, sample_seed=sample_seed)
        into[:] = np.asarray(image).transpose(2, 0, 1)
    return into


def _room(size: int) -> NDArray[np.uint8]:
    return np.empty((3, size, size), np.uint8)


def _crop(
    picture: Picture, box: Box, settings: AugmentSettings, *, into: NDArray[np.uint8], is_mirrored: bool
) -> None:
    """`into`: uint8 [3,size,size]"""
    size, interpolation = into.shape[2], settings.interpolation
    denominator = _denominator(box, size) if settings.decode == "scaled" else 1
    if settings.resampler == "torch" and has_torch_filter(interpolation):
        pixels = picture.reduced_region(box, denominator)
        resize_torch(pixels, interpolation, into=into, is_mirrored=is_mirrored)
        return
    resize_window(
        picture,
        box,
        (size, size),
        window=Box(0, 0, size, size),
        interpolation=interpolation,
        into=into,
        is_mirrored=is_mirrored,
    )


def _denominator(box: Box, size: int) -> Denominator:
    """The largest that leaves at least as many pixels as are needed."""
    denominators: tuple[Denominator, ...] = (8, 4, 2)
    return next((d for d in denominators if min(box.width, box.height) >= d * size), 1)


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


@lru_cache(maxsize=32)  # building takes 0.1 ms, and the settings change at most once an epoch
def build_randaug(settings: AugmentSettings) -> RandAugment:
    """timm's object for the settings' RandAugment, with the magnitude of the epoch and the fault below mended."""
    assert settings.randaug is not None, "called without RandAugment"
    hparams: dict[str, object] = {"img_mean": settings.fill, "interpolation": FILTER[settings.interpolation]}
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
        for op in choose_ops(policy, numbers):
            image = op(image)
    return image


def choose_ops(policy: RandAugment, numbers: NDArray[np.float64]) -> list[AugmentOp]:
    """Each layer's operation: uniform with replacement, or by weights without, as timm chooses."""
    if policy.choice_weights is None:
        return [policy.ops[int(number * len(policy.ops))] for number in numbers]
    weights, chosen = np.array(policy.choice_weights, dtype=np.float64), []
    for number in numbers:
        place = int(np.searchsorted(np.cumsum(weights) / weights.sum(), number, side="right"))
        chosen.append(policy.ops[min(place, len(weights) - 1)])
        weights[place] = 0
    return chosen
