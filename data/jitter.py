"""Colour jitter: brightness, contrast, saturation and hue by random amounts in a random order, as torchvision's (and
so timm's) ColorJitter does on Pillow images. On the host these are torchvision's functions; on the device a batch gets
the same amounts in the same order, and the same levels but for roundings of the hue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional  # type: ignore[import-untyped]

from data import enhance
from data.hue import shift_hue
from data.order import hash64, uniform

# N samples; levels are float32 that hold whole numbers 0..255.
_DRAWS_OF_STEP: Final = 2  # which Change, and its factor (of hue: the shift in turns)


class Change(IntEnum):
    """What one step of a sample's jitter does."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


_ON_PILLOW: Final[dict[Change, Callable[[Image.Image, float], Image.Image]]] = {
    Change.BRIGHTNESS: functional.adjust_brightness,
    Change.CONTRAST: functional.adjust_contrast,
    Change.SATURATION: functional.adjust_saturation,
    Change.HUE: functional.adjust_hue,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Strengths: a factor is uniform in [max(0, 1 - strength), 1 + strength], hue's shift in [-hue, hue] turns."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"color jitter's {name} {getattr(self, name)} must be 0 (off) or positive; timm uses 0.4"
                )
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"color jitter's hue {self.hue} is in turns; give a number from 0 to 0.5")

    @property
    def num_draws(self) -> int:
        return _DRAWS_OF_STEP * self._steps

    @property
    def _steps(self) -> int:
        return 4 if self.hue > 0 else 3

    def draw(self, seeds: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [N,num_draws] for samples with these seeds (int64 [N])."""
        numbers = uniform(hash64(seeds[:, None], "jitter", np.arange(2 * self._steps)))
        order = numbers[:, self._steps :].argsort(axis=1)
        strength = np.array([self.brightness, self.contrast, self.saturation, self.hue])[: self._steps]
        centre = np.array([1.0, 1.0, 1.0, 0.0])[: self._steps]
        low, high = centre - strength, centre + strength
        low[:3] = low[:3].clip(min=0)
        factors = low + (high - low) * numbers[:, : self._steps]
        rows = np.stack([order, np.take_along_axis(factors, order, axis=1)], axis=2)
        return rows.reshape(len(seeds), -1).astype(np.float32)

    def on_picture(self, image: Image.Image, *, sample_seed: int) -> Image.Image:
        """An RGB image as ColorJitter changes it, with the amounts and in the order that this seed draws."""
        for change, factor in self.draw(np.array([sample_seed])).reshape(-1, _DRAWS_OF_STEP).tolist():
            image = _ON_PILLOW[Change(int(change))](image, factor)
        return image

    def __call__(self, levels: Tensor, draw: Tensor) -> Tensor:
        """levels float32 (N,3,H,W) with whole numbers 0..255, draw (N,num_draws) -> levels."""
        for row in torch.split(draw, _DRAWS_OF_STEP, dim=1):
            change, factor = (row[:, column, None, None, None] for column in range(_DRAWS_OF_STEP))
            levels = self._step(levels, change, factor)
        return levels

    def _step(self, levels: Tensor, change: Tensor, factor: Tensor) -> Tensor:
        plain = torch.where(change == Change.CONTRAST, enhance.mean_grey(levels), torch.zeros_like(levels))
        plain = torch.where(change == Change.SATURATION, enhance.grey(levels), plain)
        is_hue = change == Change.HUE
        blended = enhance.blend(plain, levels, torch.where(is_hue, 1.0, factor))
        if self.hue == 0:
            return blended
        return torch.where(is_hue, shift_hue(levels, torch.where(is_hue, factor, 0.0)), blended)
