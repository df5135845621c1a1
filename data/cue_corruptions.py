"""What damages a cue64 picture: noise, blur, weather and compression-like losses, ten kinds in five strengths.

They resemble ImageNet-C's kinds (Hendrycks and Dietterich 2019, arXiv:1903.12261), are made for 64 px pictures and
are no standard. Each is a pure function of (uint8 [H,W,3], strength 0 to 4, seed) to uint8 [H,W,3].
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtri

from data.order import hash64, uniform

Picture = NDArray[np.uint8]  # [H,W,3]
Field = NDArray[np.float64]

NUM_STRENGTHS: Final = 5
_SIGMAS: Final = (0.06, 0.1, 0.15, 0.21, 0.28)  # of values in [0, 1]
_PHOTONS: Final = (60, 30, 16, 9, 5)  # that make a value of 1
_SPOILED: Final = (0.02, 0.05, 0.09, 0.14, 0.2)  # share of the values
_BLURS: Final = (0.7, 1.0, 1.4, 1.9, 2.5)  # pixels
_PATHS: Final = (3, 5, 7, 10, 13)  # pixels
_FOGS: Final = (0.2, 0.3, 0.4, 0.5, 0.6)  # share that the fog covers
_LIGHTS: Final = (0.08, 0.15, 0.22, 0.29, 0.36)  # added to every value, or taken from it
_CONTRASTS: Final = (0.6, 0.45, 0.33, 0.24, 0.17)  # what is left of the distance to the mean
_SWINGS: Final = (0.6, 1.0, 1.5, 2.0, 2.6)  # pixels that points are moved
_BLOCKS: Final = (2, 2, 3, 4, 5)  # pixels on a side


def gaussian_noise(image: Picture, strength: int, seed: int) -> Picture:
    """Independent normal noise on every value."""
    return _to_uint8(image / 255 + _SIGMAS[strength] * _normal(seed, "gaussian", image.shape))


def shot_noise(image: Picture, strength: int, seed: int) -> Picture:
    """Noise as of few photons: its variance is proportional to the value (the normal law in Poisson's place)."""
    value = image / 255
    return _to_uint8(value + np.sqrt(value / _PHOTONS[strength]) * _normal(seed, "shot", image.shape))


def impulse_noise(image: Picture, strength: int, seed: int) -> Picture:
    """Some values are black or white."""
    chance = _uniform(seed, "impulse", image.shape)
    half = _SPOILED[strength] / 2
    return _to_uint8(np.where(chance < half, 0.0, np.where(chance > 1 - half, 1.0, image / 255)))


def blur(image: Picture, strength: int, seed: int) -> Picture:
    """Gaussian blur. Nothing is random."""
    del seed
    return _to_uint8(gaussian_filter(image / 255, (_BLURS[strength], _BLURS[strength], 0), mode="nearest"))


def motion_blur(image: Picture, strength: int, seed: int) -> Picture:
    """The mean along a straight path of any direction."""
    angle = np.pi * float(_uniform(seed, "motion", (1,))[0])
    places = np.linspace(-0.5, 0.5, 2 * _PATHS[strength]) * _PATHS[strength]
    moved = [_moved(image, p * np.sin(angle), p * np.cos(angle)) for p in places]
    return _to_uint8(np.mean(moved, axis=0))


def fog(image: Picture, strength: int, seed: int) -> Picture:
    """Soft white clouds in front."""
    clouds = gaussian_filter(_uniform(seed, "fog", image.shape[:2]), 6, mode="wrap")
    low, high = clouds.min(), clouds.max()
    cover = _FOGS[strength] * (0.6 + 0.4 * (clouds - low) / (high - low))[..., None]
    return _to_uint8((1 - cover) * image / 255 + cover)


def brightness(image: Picture, strength: int, seed: int) -> Picture:
    """All values brighter, or all darker."""
    sign = 1 if _uniform(seed, "brightness", (1,))[0] < 0.5 else -1
    return _to_uint8(image / 255 + sign * _LIGHTS[strength])


def contrast(image: Picture, strength: int, seed: int) -> Picture:
    """Every value moved towards the picture's mean. Nothing is random."""
    del seed
    mean = image.mean() / 255
    return _to_uint8(mean + _CONTRASTS[strength] * (image / 255 - mean))


def elastic(image: Picture, strength: int, seed: int) -> Picture:
    """Points moved by a smooth random field."""
    fields = [gaussian_filter(_normal(seed, f"elastic {a}", image.shape[:2]), 4, mode="wrap") for a in "yx"]
    down, across = (_SWINGS[strength] * field / field.std() for field in fields)
    return _to_uint8(_moved(image, down, across))


def pixelate(image: Picture, strength: int, seed: int) -> Picture:
    """Squares of one colour each. Nothing is random."""
    del seed
    side = _BLOCKS[strength]
    starts = [np.arange(0, length, side) for length in image.shape[:2]]
    sums = np.add.reduceat(np.add.reduceat(image / 255, starts[0], axis=0), starts[1], axis=1)
    counts = [np.diff(np.append(s, length)) for s, length in zip(starts, image.shape[:2], strict=True)]
    means = sums / (counts[0][:, None, None] * counts[1][None, :, None])
    return _to_uint8(np.repeat(np.repeat(means, counts[0], axis=0), counts[1], axis=1))


CORRUPTIONS: Final[dict[str, Callable[[Picture, int, int], Picture]]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "blur": blur,
    "motion_blur": motion_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic": elastic,
    "pixelate": pixelate,
}


def corrupt(image: Picture, seed: int) -> Picture:
    """One kind in one strength, both drawn from the seed, all equally often."""
    kind, strength = uniform(hash64(seed, "corruption", np.arange(2)))
    name = list(CORRUPTIONS)[int(kind * len(CORRUPTIONS))]
    return CORRUPTIONS[name](image, int(strength * NUM_STRENGTHS), seed)


def _moved(image: Picture, down: float | Field, across: float | Field) -> Field:
    """[H,W,3] in [0, 1]: what lies `down` and `across` pixels from each point."""
    y, x = np.indices(image.shape[:2], dtype=np.float64)
    where = np.stack([y + down, x + across])
    channels = [map_coordinates(image[..., c] / 255, where, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1)


def _uniform(seed: int, purpose: str, shape: tuple[int, ...]) -> Field:
    return uniform(hash64(seed, purpose, np.arange(np.prod(shape)))).reshape(shape)


def _normal(seed: int, purpose: str, shape: tuple[int, ...]) -> Field:
    normal: Field = ndtri(_uniform(seed, purpose, shape))
    return normal


def _to_uint8(values: Field) -> Picture:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
