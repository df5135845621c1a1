"""Augmentation on the device: what the recipe leaves to it, in timm's order, driven by draws of the host.

RandAugment, colour jitter (both in whole levels, as Pillow rounds them), erasing; then, or before the erasing, comes
`data.mix`. The draws stand in the columns of `Batch.draw` from NUM_DRAWS on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.batch import NUM_DRAWS
from data.device_randaug import DeviceRandAugment
from data.erase import DeviceErase, Noise
from data.jitter import Jitter
from data.op_draws import count_layers, draw_ops, ops_of
from data.transform import AugmentSettings


def with_augment(
    draws: NDArray[np.float32], seeds: NDArray[np.int64], settings: AugmentSettings, *, image_size: int
) -> NDArray[np.float32]:
    """`draws` (float32 [N,NUM_DRAWS]) and behind them those of the device's augmentation of samples with these seeds
    (int64 [N]): float32 [N,NUM_DRAWS+K], where K is 0 if all is done on the host.

    K and the meaning of the columns are the same in every epoch of a recipe: strengths change, sets do not.
    """
    parts = [draws]
    if settings.device_randaug is not None:
        parts.append(draw_ops(seeds, settings, image_size=image_size))
    if settings.device_jitter is not None:
        parts.append(settings.device_jitter.draw(seeds))
    if settings.erase is not None:
        parts.append(settings.erase.draw(seeds, image_size=image_size))
    return np.concatenate(parts, axis=1) if len(parts) > 1 else draws


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAugment:
    """The device's part of a recipe's augmentation; a part that is None is off, or the host's."""

    randaug: DeviceRandAugment | None = None
    jitter: Jitter | None = None
    erase: DeviceErase | None = None
    erase_after_mix: bool = False

    @torch.no_grad()
    def before_mix(self, image: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
        """uint8 (N,3,H,W), draw float32 (N,NUM_DRAWS+K), seed int64 (N) -> float32 (N,3,H,W) in [0,1]."""
        levels, start = image.to(torch.float32), NUM_DRAWS
        for part in (self.randaug, self.jitter):
            if part is not None:
                levels = part(levels, draw[:, start : start + part.num_draws])
                start += part.num_draws
        return levels / 255.0 if self.erase_after_mix else self._erase(levels / 255.0, draw, seed)

    @torch.no_grad()
    def after_mix(self, image: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
        """float32 (N,3,H,W) in [0,1], the mixed batch, to the same."""
        return self._erase(image, draw, seed) if self.erase_after_mix else image

    def _erase(self, image: Tensor, draw: Tensor, seed: Tensor) -> Tensor:
        if self.erase is None:
            return image
        return self.erase(image, draw[:, -self.erase.num_draws :], seed)


NO_AUGMENT: Final = DeviceAugment()


def device_augment(
    settings: AugmentSettings,
    *,
    erase_after_mix: bool,
    mean: Sequence[float],
    std: Sequence[float],
    noise: Noise,
) -> DeviceAugment:
    """What the device does for these settings of any one epoch. ValueError for what it cannot do."""
    erase = None
    if settings.erase is not None:
        erase = DeviceErase(settings=settings.erase, mean=tuple(mean), std=tuple(std), noise=noise)
    return DeviceAugment(
        randaug=_device_randaug(settings) if settings.device_randaug is not None else None,
        jitter=settings.device_jitter,
        erase=erase,
        erase_after_mix=erase_after_mix,
    )


def _device_randaug(settings: AugmentSettings) -> DeviceRandAugment:
    if settings.interpolation == "nearest" or settings.interpolation == "lanczos":
        raise ValueError(
            f"RandAugment on the device knows bilinear and bicubic, not {settings.interpolation}; "
            "use randaug_on=host"
        )
    return DeviceRandAugment(
        ops=ops_of(settings),
        num_layers=count_layers(settings),
        fill=settings.fill,
        interpolation=settings.interpolation,
    )
