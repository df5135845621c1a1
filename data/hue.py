"""Turning the hue of a batch through Pillow's 8-bit HSV, as torchvision's adjust_hue does on Pillow images."""

import torch
from torch import Tensor

# N samples; levels are float32 that hold whole numbers 0..255.


def shift_hue(levels: Tensor, turns: Tensor) -> Tensor:
    """levels (N,3,H,W), turns (N,1,1,1) from -0.5 to 0.5 -> levels. Even 0 rounds colours to what HSV can tell."""
    hue, saturation, value = _to_hsv(levels)
    shift = (turns * 255).trunc()  # a whole number of 256ths, as in torchvision
    hue = hue + shift
    hue = hue - 256 * (hue / 256).floor()
    return _to_rgb(hue, saturation, value)


def _to_hsv(levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (N,1,H,W), whole numbers 0..255."""
    red, green, blue = torch.split(levels, 1, dim=1)
    value, lowest = levels.amax(1, keepdim=True), levels.amin(1, keepdim=True)
    span = value - lowest
    some = span.clamp(min=1)
    r, g, b = ((value - channel) / some for channel in (red, green, blue))
    sixths = torch.where(red == value, b - g, torch.where(green == value, 2 + r - b, 4 + g - r))
    turn = sixths / 6 + 1
    hue = ((turn - turn.floor()) * 255).floor()
    saturation = (span / value.clamp(min=1) * 255).floor()
    grey = torch.zeros_like(span)
    return torch.where(span > 0, hue, grey), torch.where(span > 0, saturation, grey), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sixths, share = hue * 6 / 255, saturation / 255
    sector = sixths.floor()
    part = sixths - sector
    p, q, t = (
        (value * (1 - share * weight) + 0.5).floor().clamp(0, 255)
        for weight in (torch.ones_like(part), part, 1 - part)
    )
    red = _pick(sector, (value, q, p, p, t, value))
    green = _pick(sector, (t, value, value, q, p, p))
    blue = _pick(sector, (p, p, t, value, value, q))
    return torch.cat([red, green, blue], dim=1)


def _pick(sector: Tensor, of_sector: tuple[Tensor, ...]) -> Tensor:
    """Sector 6, which a hue of 255 is in, is sector 0."""
    found = of_sector[0]
    for number, candidate in enumerate(of_sector[1:], start=1):
        found = torch.where(sector == number, candidate, found)
    return found
