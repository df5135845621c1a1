"""Shifted copies of a picture of light ink on a dark ground: noise, blur, contrast, stylized, sketch.

Each is a pure function of (uint8 [H,W,3], seed) to uint8 [H,W,3]. Lengths are in units of W/32, so that a
scan enlarged to another size is shifted as strongly. Strengths were chosen on the quickstart's models: a person still
reads the digits, and a model trained on clean ones loses.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from data.order import hash64, uniform

Picture = NDArray[np.uint8]  # [H,W,3]
Field = NDArray[np.float64]

NOISE_SIGMA: Final = 0.3  # of pixel values in [0, 1]
BLUR_SIGMA: Final = 3.0  # in W/32: 3 px at 32 px
CONTRAST: Final = 0.5  # what is left of each pixel's distance to the picture's mean
INK_LUMA, GROUND_LUMA = 0.85, 0.15  # mean brightness of the two textures
_TEXTURE_LUMA: Final = 0.13  # a texture's two colours lie this far above and below its mean
_SATURATION: Final = 0.4
_PENCIL: Final = 4.0  # darkness of a line per unit of gradient
_PENCIL_SIGMA: Final = 0.7  # in W/32
_LUMA: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

# Directions of a texture's waves, in radians about its own: how many, and how far they spread.
_STRIPES, _CHECKS, _FIBRES, _BLOBS = (1, 0.0), (2, np.pi / 2), (12, 0.7), (12, np.pi)
_FAMILIES: Final = (_STRIPES, _CHECKS, _FIBRES, _BLOBS)


def noise(image: Picture, seed: int) -> Picture:
    """Independent Gaussian noise on every value, sigma NOISE_SIGMA, cut to [0, 1]."""
    numbers = uniform(hash64(seed, "noise", np.arange(image.size))).reshape(image.shape)
    return _to_uint8(image / 255 + NOISE_SIGMA * ndtri(numbers))


def blur(image: Picture, seed: int) -> Picture:
    """Gaussian blur, sigma BLUR_SIGMA. Nothing is random."""
    del seed
    sigma = BLUR_SIGMA * image.shape[1] / 32
    return _to_uint8(gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest"))


def contrast(image: Picture, seed: int) -> Picture:
    """Every value moved towards the picture's mean, CONTRAST of the way left. Nothing is random."""
    del seed
    mean = image.mean() / 255
    return _to_uint8(mean + CONTRAST * (image / 255 - mean))


def stylized(image: Picture, seed: int) -> Picture:
    """Ink and ground filled with generated textures of two different kinds; only the shape stays."""
    first, step = uniform(hash64(seed, "families", np.arange(2)))
    ink = int(first * len(_FAMILIES))
    ground = (ink + 1 + int(step * (len(_FAMILIES) - 1))) % len(_FAMILIES)
    shape = _ink(image)[..., None]
    filled = shape * _texture(image, seed, "ink", _FAMILIES[ink], INK_LUMA)
    return _to_uint8(filled + (1 - shape) * _texture(image, seed, "ground", _FAMILIES[ground], GROUND_LUMA))


def sketch(image: Picture, seed: int) -> Picture:
    """The ink's outline alone, dark lines on white: the other way round than the scans. Nothing is random."""
    del seed
    unit = image.shape[1] / 32
    sigma = _PENCIL_SIGMA * unit
    rows, columns = np.gradient(gaussian_filter(_ink(image), sigma, mode="nearest"))
    lines = 1 - _PENCIL * unit * np.hypot(rows, columns)
    return _to_uint8(np.repeat(lines[..., None], 3, axis=2))


SHIFTS: Final[dict[str, Callable[[Picture, int], Picture]]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "stylized": stylized,
    "sketch": sketch,
}


def _ink(image: Picture) -> Field:
    """[H,W], 1 on ink and 0 on the ground; a ramp about the middle keeps edges smooth and soft strokes whole."""
    ink: Field = np.clip((image @ _LUMA / 255 - 0.2) / 0.6, 0, 1)
    return ink


def _texture(image: Picture, seed: int, part: str, family: tuple[int, float], luma: float) -> Field:
    """[H,W,3] in [0, 1]: two colours about `luma`, mixed by the family's waves."""
    waves = _waves(image, seed, part, *family)
    mixed = (0.5 + 0.5 * waves / np.abs(waves).max())[..., None]
    hues = _draws(seed, f"{part} hues", 2)
    dark, light = _colour(hues[0], luma - _TEXTURE_LUMA), _colour(hues[1], luma + _TEXTURE_LUMA)
    texture: Field = dark + mixed * (light - dark)
    return texture


def _waves(image: Picture, seed: int, part: str, num_waves: int, spread: float) -> Field:
    """[H,W]: a sum of plane waves within half an octave of one length, from 3.5 to 8 in W/32."""
    angle, length = _draws(seed, f"{part} waves", 2)
    angles = np.pi * angle + spread * (np.arange(num_waves) / max(1, num_waves - 1) - 0.5)
    lengths = (3.5 + 4.5 * length) * 2 ** (_draws(seed, f"{part} lengths", num_waves) - 0.5)
    y, x = np.indices(image.shape[:2])[..., None] * (32 / image.shape[1])
    turns = (x * np.cos(angles) + y * np.sin(angles)) / lengths + _draws(seed, f"{part} phases", num_waves)
    waves: Field = np.sin(2 * np.pi * turns).sum(-1)
    return waves


def _colour(hue: float, luma: float) -> Field:
    """RGB of a hue in [0, 1) at a brightness."""
    pure = np.clip(np.abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colour: Field = np.clip(luma + _SATURATION * (pure - pure @ _LUMA), 0, 1)
    return colour


def _draws(seed: int, purpose: str, number: int) -> Field:
    return uniform(hash64(seed, purpose, np.arange(number)))


def _to_uint8(values: Field) -> Picture:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
