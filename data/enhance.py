"""Pillow's ImageEnhance and blur filters on a batch, in whole levels, each sample by its own factor."""

import torch
import torch.nn.functional as F
from torch import Tensor

# N samples, H rows, W columns; levels are float32 that hold whole numbers 0..255.


def blend(plain: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """Image.blend: factor 0 is `plain`, 1 is `levels`, more goes beyond; the fraction is cut off.

    levels (N,3,H,W), plain broadcasts to it, factor (N,1,1,1).
    """
    return (plain + factor * (levels - plain)).clamp(0, 255).floor()


def grey(levels: Tensor) -> Tensor:
    """Pillow's mode L: (N,3,H,W) -> (N,1,H,W). Every product and sum is below 2**24 and so exact."""
    red, green, blue = levels.unbind(1)
    weighed = red * 19595 + green * 38470 + blue * 7471 + 32768
    return (weighed * 2.0**-16).floor()[:, None]


def mean_grey(levels: Tensor) -> Tensor:
    """The rounded mean of `grey`, (N,1,1,1)."""
    pixels = levels.shape[2] * levels.shape[3]
    assert pixels < 1 << 22, f"the sum of {pixels} pixels does not fit in int32"
    total = grey(levels).to(torch.int32).sum((1, 2, 3), dtype=torch.int32)
    guess = (total.to(torch.float32) / pixels + 0.5).floor().to(torch.int32)
    rest = 2 * (total - guess * pixels) + pixels  # exact, where the guess may be off by one
    mean = guess + (rest >= 2 * pixels).to(torch.int32) - (rest < 0).to(torch.int32)
    return mean.to(levels.dtype)[:, None, None, None]


def smooth(levels: Tensor) -> Tensor:
    """ImageFilter.SMOOTH: the 3x3 mean with a centre of weight 5; the outermost pixels stay."""
    height, width = levels.shape[2:]
    rows = F.pad(levels, (1, 1, 1, 1))
    rows = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * levels
    y = torch.arange(height, device=levels.device)[:, None]
    x = torch.arange(width, device=levels.device)[None, :]
    is_inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return torch.where(is_inner, (total / 13 + 0.5).floor(), levels)


def gaussian_blur(levels: Tensor, radius: Tensor) -> Tensor:
    """ImageFilter.GaussianBlur of radius (N,1,1,1), 0 to 2.3 pixels: three box means along each side."""
    weights = _box_weights(_half_length(radius))
    for side in (3, 2):
        for _ in range(3):
            levels = _box_mean(levels, weights, side=side)
    return levels


def _half_length(radius: Tensor) -> Tensor:
    """Of the box, a fraction below 2 (Gwosdek et al. 2011, as Pillow computes it)."""
    variance = radius * radius / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) ** 2))


def _box_weights(half: Tensor) -> list[Tensor]:
    """Of the centre, its neighbours and theirs, in units of 2**-24 and cut off there."""
    whole = half.floor()
    inner = (2.0**24 / (2 * half + 1)).floor()
    outer = ((2.0**24 - (2 * whole + 1) * inner) / 2).floor()
    is_wide = whole >= 1
    return [inner, torch.where(is_wide, inner, outer), torch.where(is_wide, outer, torch.zeros_like(outer))]


def _box_mean(levels: Tensor, weights: list[Tensor], *, side: int) -> Tensor:
    size = levels.shape[side]
    padded = F.pad(levels, (2, 2, 0, 0) if side == 3 else (0, 0, 2, 2), mode="replicate")
    shifted = [padded.narrow(side, start, size) for start in range(5)]
    sums = [shifted[2], shifted[1] + shifted[3], shifted[0] + shifted[4]]
    # In two halves of 12 bits: every product and sum stays a whole number below 2**24, and halves round as Pillow's.
    high = [(weight * 2.0**-12).floor() for weight in weights]
    low = [weight - 2.0**12 * part for weight, part in zip(weights, high, strict=True)]
    upper, lower = (part[0] * sums[0] + part[1] * sums[1] + part[2] * sums[2] for part in (high, low))
    return ((upper + (lower * 2.0**-12).floor() + 2048) * 2.0**-12).floor()
