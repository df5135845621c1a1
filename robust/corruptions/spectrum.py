"""blue_noise_sample and brownish_noise of ImageNet-C-bar: noise of a given spectrum with random phases.

Fourier transforms as matrix products, since XLA's do not run everywhere; only the real part is computed.
"""

import math

import torch
from torch import Tensor

from robust.corruptions.draws import stream, uniform
from robust.corruptions.tables import C_BAR

# N images; levels (N,3,H,W) are 0..255 in float32; k and l are frequencies, m and n places.


def blue_noise_sample(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Pixels where blue noise is below a threshold become black."""
    threshold = C_BAR["blue_noise_sample"][severity - 1] * 0.3 - 2.5
    field = _field(levels, seed, _radius(levels))
    return torch.where((field > threshold)[:, None], levels, 0.0)


def brownish_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Coarse noise is added, to each channel its own."""
    intensity = C_BAR["brownish_noise"][severity - 1] * 6.4
    power = 1 / (_radius(levels) ** 2 + 1)
    fields = [
        _field(levels, stream(seed, "brownish_noise", severity, 1 + channel), power) for channel in range(3)
    ]
    return levels + intensity * torch.stack(fields, dim=1)


def _radius(levels: Tensor) -> Tensor:
    """(H,W): frequency, in periods per shorter side, with 0 in the middle."""
    height, width = levels.shape[-2:]
    side = min(height, width)
    y, x = (
        (torch.arange(length, device=levels.device) - length / 2) * (side / length)
        for length in (height, width)
    )
    return torch.sqrt(y[:, None] ** 2 + x[None, :] ** 2)


def _field(levels: Tensor, seed: Tensor, power: Tensor) -> Tensor:
    """(N,H,W), standard deviation 1. As in the original, points opposite to the middle have the same phase."""
    height, width = power.shape
    left = -(-width // 2)
    half = uniform(seed, height * left).reshape(-1, height, left)
    phase = 2 * math.pi * torch.cat([half, half[..., : width - left].flip(-1, -2)], dim=-1)
    real, imaginary = power * torch.cos(phase), power * torch.sin(phase)
    cos_mk, sin_mk = _waves(height, levels.device)
    cos_nl, sin_nl = _waves(width, levels.device)
    first, second = cos_mk @ real - sin_mk @ imaginary, sin_mk @ real + cos_mk @ imaginary
    field = first @ cos_nl.T - second @ sin_nl.T
    return field / field.std(dim=(1, 2), keepdim=True, unbiased=False)


def _waves(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [place,frequency]; the first frequency is -length // 2."""
    place = torch.arange(length, device=device)
    turns = (place[:, None] * (place[None, :] + length // 2)) % length
    angle = turns.to(torch.float32) * (2 * math.pi / length)
    return torch.cos(angle), torch.sin(angle)
