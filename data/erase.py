"""Random erasing (Zhong et al. 2020, 1708.04896) on the device, with timm's boxes and modes.

Boxes are draws of the host; the colours come from the noise function that the caller hands in, keyed by the
sample's seed. timm erases normalised images with a normal distribution: in pixels that is mean + std * normal, and
here it is clipped to [0, 1], since an image outside a model never leaves that range.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.fill import filled
from data.order import hash64, uniform

# N samples, B boxes, H rows, W columns
Noise = Callable[[Tensor, Sequence[int]], Tensor]  # (seed int64 (N), shape) -> uniform float32 (N, *shape)
Mode = Literal["const", "rand", "pixel"]

_STREAM: Final = 0x6572617365  # "erase": keeps this noise apart from other uses of a sample's seed
_TRIES: Final = 10
_DRAWS_OF_BOX: Final = 4  # y0, y1, x0, x1 in pixels; all 0 where there is no box
_NUMBERS_OF_BOX: Final = 2 * _TRIES + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Erase:
    """const: the mean colour; rand: a random colour for each box; pixel: a random colour for each pixel."""

    prob: float
    mode: Mode = "const"
    count: int = 1  # boxes at most, their number is uniform in 1..count and their area divided by it
    area: tuple[float, float] = (0.02, 1 / 3)  # share of the image
    min_aspect: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"erase prob {self.prob} is not a probability; give a number from 0 to 1")
        if self.mode not in get_args(Mode):
            raise ValueError(f"erase mode {self.mode!r} is unknown; use const, rand or pixel")
        if self.count < 1:
            raise ValueError(f"erase count {self.count} must be at least 1; for no erasing set the prob to 0")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"erase area {self.area} must be (low, high) with 0 < low <= high <= 1")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"erase min_aspect {self.min_aspect} must be above 0 and at most 1")

    @property
    def num_draws(self) -> int:
        return _DRAWS_OF_BOX * self.count

    def draw(self, seeds: NDArray[np.int64], *, image_size: int) -> NDArray[np.float32]:
        """float32 [N,num_draws] for samples with these seeds (int64 [N])."""
        numbers = uniform(hash64(seeds[:, None], "erase", np.arange(2 + self.count * _NUMBERS_OF_BOX)))
        wanted = 1 + (numbers[:, 1] * self.count).astype(np.int64)
        is_box = np.where(numbers[:, :1] < self.prob, np.arange(self.count) < wanted[:, None], False)
        boxes = [
            self._box(columns, wanted, image_size=image_size) * is_box[:, place, None]
            for place, columns in enumerate(np.split(numbers[:, 2:], self.count, axis=1))
        ]
        return np.concatenate(boxes, axis=1).astype(np.float32)

    def _box(
        self, numbers: NDArray[np.float64], count: NDArray[np.int64], *, image_size: int
    ) -> NDArray[np.int64]:
        """int64 [N,4]: the first of ten tries that fits, else an empty box."""
        share = self.area[0] + (self.area[1] - self.area[0]) * numbers[:, :_TRIES]
        area = share * image_size**2 / count[:, None]
        aspect = np.exp(math.log(self.min_aspect) * (1 - 2 * numbers[:, _TRIES : 2 * _TRIES]))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (height < image_size) & (width < image_size)
        first = fits.argmax(axis=1)[:, None]
        height, width = (np.take_along_axis(side, first, axis=1)[:, 0] for side in (height, width))
        top = (numbers[:, -2] * (image_size - height + 1)).astype(np.int64)
        left = (numbers[:, -1] * (image_size - width + 1)).astype(np.int64)
        box = np.stack([top, top + height, left, left + width], axis=1).astype(np.int64)
        return box * fits.any(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceErase:
    """`Erase` on a batch; mean and std are of the model's normalisation, `noise` is the caller's."""

    settings: Erase
    mean: Sequence[float]
    std: Sequence[float]
    noise: Noise

    @property
    def num_draws(self) -> int:
        return self.settings.num_draws

    def __call__(self, image: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
        """image float32 (N,3,H,W) in [0,1], draw (N,num_draws), seed int64 (N) -> image."""
        height, width = image.shape[2:]
        for place, box in enumerate(torch.split(draw, _DRAWS_OF_BOX, dim=1)):
            colour = self._colour(seed ^ _STREAM, place, height=height, width=width)
            image = torch.where(_inside(box, height=height, width=width), colour, image)
        return image

    def _colour(self, seed: Tensor, place: int, *, height: int, width: int) -> Tensor:
        """For box number `place`, broadcastable to (N,3,H,W)."""
        mean, std = (
            filled(v, device=seed.device, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std)
        )
        if self.settings.mode == "const":
            return mean
        count = self.settings.count
        if self.settings.mode == "rand":
            number = self.noise(seed, (count, 3, 1, 1))[:, place]
        else:  # boxes may overlap, so each sees the same noise
            number = self.noise(seed, (3, height, width))
        # The number 0 stands for minus infinity, which is black here.
        return (mean + std * math.sqrt(2) * torch.erfinv(2 * number - 1)).clamp(0, 1)


def _inside(box: Tensor, *, height: int, width: int) -> Tensor:
    """bool (N,1,H,W), True in [y0,y1) x [x0,x1); box (N,4)."""
    y = torch.arange(height, device=box.device, dtype=box.dtype)
    x = torch.arange(width, device=box.device, dtype=box.dtype)
    rows = (y >= box[:, 0, None]) & (y < box[:, 1, None])
    columns = (x >= box[:, 2, None]) & (x < box[:, 3, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
