"""frost: a share of the image and a share of a photograph of frost.

The original's six photographs carry no licence, so none of them is here. Unless the user has some, five pictures are
generated in their place: fractal noise, half of it folded into ridges. Of the originals they keep how bright each is,
in every channel and in their spread, and about how fast their spectrum falls (power with the frequency to the minus
1.3 to 1.9). Like the originals' code, which draws from the first five, two of which are alike.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import uniform
from robust.corruptions.pixels import pack, unpack

# N images, K pictures of h x w; levels (N,3,H,W) are 0..255 in float32.
_SIDE: Final = 512  # of a generated picture, which continues on the other side
# Measured on the first five photographs: mean and standard deviation by channel, exponent of the spectrum.
_LOOKS: Final = (
    ((78, 149, 166), (27, 17, 15), 1.3),
    ((201, 205, 215), (21, 22, 23), 1.7),
    ((201, 205, 215), (21, 22, 23), 1.7),
    ((138, 153, 165), (29, 29, 30), 1.3),
    ((112, 123, 135), (44, 43, 42), 1.9),
)


def frost(levels: Tensor, seed: Tensor, severity: int, *, overlays: Tensor | None = None) -> Tensor:
    """`overlays` (K,3,h,w) in [0, 1]: the user's photographs, of which a part of the image's size is taken."""
    of_image, of_frost = tables.FROST[severity - 1]
    height, width = levels.shape[-2:]
    if overlays is None:
        packed, size = _generated().to(levels.device), [_SIDE, _SIDE]
        spans = size
    else:
        packed, size = pack(overlays.to(levels.device, torch.float32) * 255), list(overlays.shape[2:])
        spans = [max(size[0] - height, 1), max(size[1] - width, 1)]
    rime = _cut(packed, size, uniform(seed, 3), spans, height=height, width=width)
    return levels * of_image + rime.reshape(levels.shape) * of_frost


def _cut(
    packed: Tensor, size: Sequence[int], draw: Tensor, spans: Sequence[int], *, height: int, width: int
) -> Tensor:
    """Of pictures int32 (K,h*w), (N,3,H*W): of a drawn one the part from a drawn place within `spans` on."""
    tall, broad = size
    bounds = torch.tensor([packed.shape[0], *spans], device=draw.device)
    which, top, left = torch.minimum((draw * bounds).to(torch.int64), bounds - 1).to(torch.int32).unbind(1)
    y = torch.arange(height, device=draw.device, dtype=torch.int32)
    x = torch.arange(width, device=draw.device, dtype=torch.int32)
    row = (top[:, None] + y) % tall + which[:, None] * tall
    column = (left[:, None] + x) % broad
    place = (row[:, :, None] * broad + column[:, None, :]).flatten()
    return unpack(packed.flatten().index_select(0, place).reshape(draw.shape[0], -1))


@lru_cache(maxsize=1)
def _generated() -> Tensor:
    """int32 (5,512*512), as `pack` makes it."""
    pictures = [_picture(number, *look) for number, look in enumerate(_LOOKS)]
    return pack(torch.from_numpy(np.stack(pictures).astype(np.float32)))


def _picture(
    number: int, mean: tuple[int, ...], spread: tuple[int, ...], exponent: float
) -> NDArray[np.float64]:
    """(3,h,w). RandomState, because its numbers are promised never to change."""
    random = np.random.RandomState(number)
    smooth, folded = _fractal(random, exponent), _fractal(random, exponent)
    grey = _standard(smooth + _standard(-np.abs(folded)))
    bounded = _standard(np.tanh(grey / 2) * 2)  # few values leave 0 to 255
    channels = [centre + width * bounded for centre, width in zip(mean, spread, strict=True)]
    return np.stack(channels).round().clip(0, 255)


def _fractal(random: np.random.RandomState, exponent: float) -> NDArray[np.float64]:
    """(h,w), periodic, mean 0 and variance 1."""
    spectrum = np.fft.rfft2(random.standard_normal((_SIDE, _SIDE)))
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None, :])
    frequency[0, 0] = 1.0
    return _standard(np.fft.irfft2(spectrum * frequency ** (-exponent / 2), s=(_SIDE, _SIDE)))


def _standard(field: NDArray[np.float64]) -> NDArray[np.float64]:
    standard: NDArray[np.float64] = (field - field.mean()) / field.std()
    return standard
