"""sparkles and inverse_sparkles of ImageNet-C-bar: white stars, or white all around one star."""

import math

import torch
from torch import Tensor

from robust.corruptions.draws import normal, stream, uniform
from robust.corruptions.tables import C_BAR
from robust.corruptions.waves import columns, places

# N images; levels (N,3,H,W) are 0..255 in float32; draws (N,1,1) each.
_STARS = 5
_FEWEST, _MOST = 50, 200  # rays
_WHITE = 255.0


def sparkles(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Five stars, one after the other."""
    height, width = levels.shape[-2:]
    radius = C_BAR["sparkles"][severity - 1] * 0.01 * min(height, width)
    for number in range(_STARS):
        own = stream(seed, "sparkles", severity, 1 + number)
        draw = columns(uniform(own, 3))
        lengths = (radius + 0.25 * radius * _ray_draws(own, severity)).clamp(min=1.0)
        shine = _star(levels, draw[0] * height, draw[1] * width, draw[2], lengths, power=1.0)
        levels = levels + shine[:, None] * (_WHITE - levels)
    return levels


def inverse_sparkles(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """The star lets the image through."""
    height, width = levels.shape[-2:]
    radius = 0.25 * min(height, width)
    power = C_BAR["inverse_sparkles"][severity - 1] * 6.5 / 50
    draw = columns(uniform(seed, 3))
    lengths = radius + 0.25 * radius * _ray_draws(seed, severity)
    top, left = (0.25 + 0.5 * draw[0]) * height, (0.25 + 0.5 * draw[1]) * width
    shine = _star(levels, top, left, draw[2], lengths, power=power)
    return _WHITE + shine[:, None] * (levels - _WHITE)


def _ray_draws(seed: Tensor, severity: int) -> Tensor:
    return normal(stream(seed, "rays", severity), _MOST)


def _star(
    levels: Tensor, top: Tensor, left: Tensor, of_rays: Tensor, lengths: Tensor, *, power: float
) -> Tensor:
    """(N,H,W) from 0 to 1. `lengths` (N,_MOST) are of as many rays as can be; `of_rays`, from 0 to 1, chooses how
    many there are. Between two rays the length changes linearly."""
    rays = _FEWEST + (of_rays * (_MOST - _FEWEST)).floor()
    y, x = places(levels)
    dy, dx = y - top, x - left
    turn = (torch.atan2(dx, dy) + math.pi) / (2 * math.pi) * rays
    share = turn - turn.floor()
    near, far = (_picked(lengths, torch.remainder(turn.floor() + step, rays)) for step in (0, 1))
    length = near + share * (far - near)
    strength = (length**2 / (dy**2 + dx**2 + 1e-4)) ** power
    return ((1 - (share - 0.5) ** 2) * strength).clamp(0.0, 1.0)


def _picked(lengths: Tensor, ray: Tensor) -> Tensor:
    index = ray.flatten(1).to(torch.int64).clamp(0, _MOST - 1)
    return torch.gather(lengths, 1, index).reshape(ray.shape)
