"""Level tables: operations that replace each of the 256 levels by another, one table per sample and channel.

All of them become one table of integers and a single gather. Integer arithmetic makes every backend agree bit for
bit; Pillow's autocontrast works in float64 and may fall one level lower where a quotient is a whole number.
"""

import torch
from torch import Tensor

# N samples, 3 channels, P pixels; levels are float32 that hold whole numbers 0..255.

_PIXELS_AT_ONCE = 8192  # the histogram's one-hot rows take 384 bytes a pixel: 3 MB a sample


def apply_table(levels: Tensor, table: Tensor) -> Tensor:
    """levels (N,3,H,W), table float32 (N,3,256) -> levels (N,3,H,W)."""
    index = levels.flatten(2).to(torch.int32)
    return torch.gather(table, 2, index).reshape(levels.shape)


def identity_table(levels: Tensor) -> Tensor:
    """float32 (256,): 0, 1, ..., 255."""
    return torch.arange(256, dtype=torch.float32, device=levels.device)


def posterize_table(level: Tensor, step: Tensor) -> Tensor:
    """Keeps the high bits: level (256,), step (N,1,1) = 2 ** (8 - bits) -> (N,1,256)."""
    return (level / step).floor() * step


def solarize_table(level: Tensor, threshold: Tensor) -> Tensor:
    """Inverts levels of at least `threshold` (N,1,1); 0 inverts all."""
    return torch.where(level < threshold, level, 255 - level)


def solarize_add_table(level: Tensor, add: Tensor) -> Tensor:
    """Adds `add` (N,1,1) to levels below 128."""
    return torch.where(level < 128, (level + add).clamp(max=255), level)


def autocontrast_table(levels: Tensor) -> Tensor:
    """Stretches each channel of `levels` (N,3,H,W) to 0..255 -> (N,3,256)."""
    pixels, level = levels.flatten(2), identity_table(levels)
    low, high = pixels.amin(2, keepdim=True), pixels.amax(2, keepdim=True)
    stretched = divide((level - low).clamp(min=0) * 255, (high - low).clamp(min=1)).clamp(max=255)
    return torch.where(high > low, stretched, level)


def equalize_table(levels: Tensor) -> Tensor:
    """Evens out each channel's histogram, as ImageOps.equalize: (N,3,H,W) -> (N,3,256)."""
    count = histogram(levels)
    upto = count.cumsum(2, dtype=torch.int32)
    # Pillow leaves out the highest level that occurs: its first place is where the sum is complete.
    before = upto - count
    without_last = torch.where(count > 0, before, 0).amax(2, keepdim=True)
    step = divide(without_last.float(), torch.full_like(without_last, 255).float())
    table = divide(before.float() + (step / 2).floor(), step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, identity_table(levels))


def histogram(levels: Tensor) -> Tensor:
    """How often each level occurs: (N,3,H,W) -> int32 (N,3,256).

    By matrix products of one-hot rows of the high and the low four bits: a scatter runs pixel after pixel on XLA.
    The products are of zeros and ones, so no precision of multiplication can change a count.
    """
    num, channels, height, width = levels.shape
    pixels = levels.reshape(num * channels, height * width)
    digit = torch.arange(16, dtype=levels.dtype, device=levels.device)
    total = torch.zeros(num * channels, 16, 16, dtype=levels.dtype, device=levels.device)
    for part in torch.split(pixels, _PIXELS_AT_ONCE, dim=1):
        high = (part / 16).floor()
        low = part - 16 * high
        is_high = (high[:, None, :] == digit[:, None]).to(levels.dtype)
        is_low = (low[:, :, None] == digit).to(levels.dtype)
        total = total + torch.bmm(is_high, is_low)
    return total.to(torch.int32).reshape(num, channels, 256)


def divide(number: Tensor, divisor: Tensor) -> Tensor:
    """number // divisor for whole numbers of float32 up to 2**24, exact on every backend."""
    return corrected((number / divisor).floor(), number, divisor)


def corrected(quotient: Tensor, number: Tensor, divisor: Tensor) -> Tensor:
    """A quotient that may be off by one, put right by its remainder: accelerators may round a division otherwise."""
    rest = number - quotient * divisor
    return quotient + (rest >= divisor).to(number.dtype) - (rest < 0).to(number.dtype)
