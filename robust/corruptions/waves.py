"""Waves of ImageNet-C-bar, added to the image: single_frequency_greyscale, cocentric_sine_waves (spelt so there) and
plasma_noise. What depends on the image's side there follows its shorter side here."""

import math

import torch
from torch import Tensor

from robust.corruptions.draws import uniform
from robust.corruptions.tables import C_BAR

# N images; levels (N,3,H,W) are 0..255 in float32; draws (N,1,1) each.


def single_frequency_greyscale(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """One plane wave, the same in all channels."""
    intensity = C_BAR["single_frequency_greyscale"][severity - 1] * 19.6
    first, second, swap, phase = columns(uniform(seed, 4))
    # In turns per pixel; the second frequency is the smaller one.
    large = first - 0.5
    small = (2 * second - 1) * large.abs()
    y, x = places(levels)
    turns = torch.where(swap < 0.5, x * large + y * small, x * small + y * large) + phase
    wave = torch.sin(2 * math.pi * (turns - turns.floor()))
    return levels + intensity * wave[:, None]


def cocentric_sine_waves(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Saw-toothed rings about a point, their radius waved by the angle."""
    intensity = C_BAR["cocentric_sine_waves"][severity - 1] * 12.8
    height, width = levels.shape[-2:]
    side = min(height, width)
    draw = columns(uniform(seed, 5))
    y, x = places(levels)
    dy, dx = y - draw[0] * height, x - draw[1] * width
    angle = torch.atan2(dx, dy) * (10 * draw[2])
    # Not hypot, which torch_xla computes on the host.
    distance = torch.sqrt(dx**2 + dy**2) + torch.sin(angle) * (side / 10) * draw[3]
    rings = distance / (side / 10 * draw[4]).clamp(min=1e-3)
    return levels + intensity * (rings - rings.floor() - 0.5)[:, None]


def plasma_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Sines of places that sines have moved four to six times, mixed with the image."""
    intensity = C_BAR["plasma_noise"][severity - 1] * 6.4
    draw = columns(uniform(seed, 4))
    moves = 4 + (3 * draw[3]).floor()
    time, flatter = 6 * math.pi * draw[0], 2.25 - (0.5 + 0.5 * draw[1])
    scale = (0.075 + 0.125 * draw[2]) * min(levels.shape[-2:])
    y, x = (place / scale for place in places(levels))
    for number in range(6):
        frequency, slowness = 1.93**number, 1.15**number
        across = torch.cos(y * frequency + time / slowness) / flatter**number
        down = torch.sin(x * frequency + time / slowness) / flatter**number
        is_move = number < moves
        x = x + torch.where(is_move, across - 0.3 * down, 0.0)
        y = y + torch.where(is_move, down + 0.3 * across, 0.0)
    red, blue = torch.sin(x - time), torch.sin(y + time)
    green = torch.sin(0.5 * (x + y + torch.sin(time)))
    return (1 - intensity / 255) * levels + intensity * torch.stack([red, green, blue], dim=1)


def places(levels: Tensor) -> tuple[Tensor, Tensor]:
    """y (1,H,1) and x (1,1,W) of the pixels."""
    height, width = levels.shape[-2:]
    y = torch.arange(height, device=levels.device, dtype=torch.float32)[None, :, None]
    x = torch.arange(width, device=levels.device, dtype=torch.float32)[None, None, :]
    return y, x


def columns(draw: Tensor) -> tuple[Tensor, ...]:
    """(N,k) -> k times (N,1,1)."""
    return draw[:, :, None, None].unbind(1)
