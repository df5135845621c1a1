"""brightness, contrast and saturate. HSV is never computed: its inverse is linear in value and in saturation."""

import torch
from torch import Tensor

from robust.corruptions import tables

# N images; levels (N,3,H,W) are 0..255 in float32.


def brightness(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """HSV's value raised, hue and saturation kept: all channels grow by one factor. Black becomes grey."""
    raised = 255 * tables.BRIGHTNESS[severity - 1]
    value = levels.amax(dim=1, keepdim=True)
    wanted = (value + raised).clamp(max=255.0)
    return torch.where(value > 0, levels * (wanted / value.clamp(min=1.0)), wanted)


def saturate(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """HSV's saturation times a factor and plus an addend. Grey has hue 0, so an addend turns it red."""
    factor, addend = tables.SATURATE[severity - 1]
    value, lowest = levels.amax(dim=1, keepdim=True), levels.amin(dim=1, keepdim=True)
    span = value - lowest
    saturation = span / value.clamp(min=1.0)
    wanted = (saturation * factor + addend).clamp(max=1.0)
    coloured = value - (value - levels) * (
        wanted / saturation.clamp(min=2**-9)
    )  # of whole levels at least 1/255
    if addend == 0:
        return coloured
    is_red = torch.arange(3, device=levels.device)[:, None, None] == 0
    return torch.where(span > 0, coloured, torch.where(is_red, value, value * (1 - addend)))


def contrast(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Nearer to each channel's mean."""
    mean = levels.mean(dim=(2, 3), keepdim=True)
    return mean.lerp(levels, tables.CONTRAST[severity - 1])
