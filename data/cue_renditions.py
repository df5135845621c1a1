"""A cue64 picture as somebody would draw or print it: poster, painting, halftone, woodcut.

The shape stays where it is, its filling is still to be guessed, but no value is the scene's own any more.
Each style is a pure function of (uint8 [H,W,3], seed) to uint8 [H,W,3].
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from data.order import hash64, uniform

Picture = NDArray[np.uint8]  # [H,W,3]
Field = NDArray[np.float64]

_LUMA: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_TONES: Final = 4  # of a poster
_BRUSH: Final = 4  # pixels: side of a painter's quadrant
_SCREEN: Final = 4.0  # pixels between a halftone's dots
_HATCH: Final = 3.0  # pixels between a woodcut's cuts


def poster(image: Picture, seed: int) -> Picture:
    """Four tones, each in a colour of its own, from dark to light."""
    tone = _equal_areas(gaussian_filter(_grey(image), 0.7, mode="nearest"), _TONES)
    hues = _draws(seed, "poster", _TONES)
    lumas = np.linspace(0.15, 0.88, _TONES)
    palette = np.stack([_colour(hue, luma) for hue, luma in zip(hues, lumas, strict=True)])
    return _to_uint8(palette[tone])


def painting(image: Picture, seed: int) -> Picture:
    """Brush strokes: every point takes the mean of the calmest of the four squares beside it (Kuwahara et al. 1976),
    in stronger colours. Nothing is random."""
    del seed
    value = image / 255
    grey = _grey(image)
    means, restless = [], []
    reach = _BRUSH // 2
    for down in (-reach, reach):
        for across in (-reach, reach):
            shift = (down, across)
            means.append(np.stack([_beside(value[..., c], shift) for c in range(3)], axis=-1))
            restless.append(_beside(grey**2, shift) - _beside(grey, shift) ** 2)
    calmest = np.argmin(restless, axis=0)[None, ..., None]
    stroke = np.take_along_axis(np.stack(means), calmest, axis=0)[0]
    luma = (stroke @ _LUMA)[..., None]
    return _to_uint8(luma + 1.6 * (stroke - luma))


def halftone(image: Picture, seed: int) -> Picture:
    """Ink dots on paper, the larger the darker, on a turned grid."""
    turn = np.pi * _draws(seed, "halftone", 3)
    across, down = _turned(image.shape[:2], float(turn[0]))
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * across / _SCREEN) + np.cos(2 * np.pi * down / _SCREEN))
    ink = (_stretched(gaussian_filter(_grey(image), 0.8, mode="nearest")) < screen)[..., None]
    paper, colour = _colour(float(turn[1] / np.pi), 0.9), _colour(float(turn[2] / np.pi), 0.2)
    return _to_uint8(np.where(ink, colour, paper))


def woodcut(image: Picture, seed: int) -> Picture:
    """Black and white: dark is black, light is white, between them run cuts of one direction."""
    across, _ = _turned(image.shape[:2], float(np.pi * _draws(seed, "woodcut", 1)[0]))
    cuts = 0.5 + 0.5 * np.cos(2 * np.pi * across / _HATCH)
    grey = _stretched(gaussian_filter(_grey(image), 0.8, mode="nearest"))
    white = grey > 0.3 + 0.4 * cuts
    return np.repeat(np.where(white, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


STYLES: Final[dict[str, Callable[[Picture, int], Picture]]] = {
    "poster": poster,
    "painting": painting,
    "halftone": halftone,
    "woodcut": woodcut,
}


def render(image: Picture, seed: int) -> Picture:
    """One style, drawn from the seed, all equally often."""
    name = list(STYLES)[int(_draws(seed, "style", 1)[0] * len(STYLES))]
    return STYLES[name](image, seed)


def _grey(image: Picture) -> Field:
    grey: Field = image @ _LUMA / 255
    return grey


def _equal_areas(grey: Field, number: int) -> NDArray[np.int64]:
    """0 to number - 1, darkest first, each on the same share of the picture."""
    ends = np.quantile(grey, np.arange(1, number) / number)
    return np.searchsorted(ends, grey)


def _stretched(grey: Field) -> Field:
    """So that a twentieth of the points are 0 and a twentieth 1."""
    low, high = np.quantile(grey, [0.05, 0.95])
    stretched: Field = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    return stretched


def _beside(field: Field, shift: tuple[int, int]) -> Field:
    """Mean over the square of _BRUSH + 1 pixels whose middle lies `shift` away."""
    mean = uniform_filter(field, _BRUSH + 1, mode="nearest")
    y, x = np.indices(field.shape)
    height, width = field.shape
    moved: Field = mean[np.clip(y + shift[0], 0, height - 1), np.clip(x + shift[1], 0, width - 1)]
    return moved


def _turned(shape: tuple[int, int], angle: float) -> tuple[Field, Field]:
    y, x = np.indices(shape, dtype=np.float64)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _colour(hue: float, luma: float) -> Field:
    """RGB of a hue in [0, 1) at a brightness."""
    pure = np.clip(np.abs((6 * hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colour: Field = np.clip(luma + 0.45 * (pure - pure @ _LUMA), 0, 1)
    return colour


def _draws(seed: int, purpose: str, number: int) -> Field:
    return uniform(hash64(seed, purpose, np.arange(number)))


def _to_uint8(values: Field) -> Picture:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
