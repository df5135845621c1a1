"""Random numbers of the corruptions: functions of an image's seed, the same bits on every machine.

Normal numbers come from a table of quantiles that the host fills in float64, not from log and cos on the device, whose
last digits differ between backends.
"""

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from robust.noise import logical_shift, noise, random_bits
from robust.stream import question_seed

# N images.
_HALF_BITS = 16
NUM_HALVES = 1 << _HALF_BITS


def stream(seed: Tensor, kind: str, severity: int, part: int = 0) -> Tensor:
    """Seeds int64 [N] of one part of one kind at one severity; the shift is a constant of the graph."""
    return seed + question_seed(0, severity, kind, part)


def uniform(seed: Tensor, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """float32 [N,count] in [low, high): an image's parameters."""
    return low + (high - low) * noise(seed, (count,))


def whole(seed: Tensor, count: int, bound: int) -> Tensor:
    """int64 [N,count] from 0 to bound - 1, for bounds far below 2**24."""
    return (noise(seed, (count,)) * bound).to(torch.int64).clamp(max=bound - 1)


def halves(seed: Tensor, count: int) -> Tensor:
    """int32 [N,count] from 0 to 65535: two of every hash, enough where results become one of 256 levels."""
    bits = random_bits(seed, -(-count // 2))
    return torch.cat([bits & (NUM_HALVES - 1), logical_shift(bits, _HALF_BITS)], dim=1)[:, :count]


def normal(seed: Tensor, count: int) -> Tensor:
    """Standard normal float32 [N,count], one of 65536 equally likely values up to +-4.3."""
    table = _quantiles().to(seed.device)
    return table.index_select(0, halves(seed, count).flatten()).reshape(seed.shape[0], count)


@lru_cache(maxsize=1)
def _quantiles() -> Tensor:
    """float32 [65536]: quantiles of the middles of equal shares, scaled to variance 1."""
    inverse = NormalDist().inv_cdf
    positive = [inverse((k + 0.5) / NUM_HALVES) for k in range(NUM_HALVES // 2, NUM_HALVES)]
    upper = np.array(positive)
    upper /= np.sqrt(np.mean(upper**2))
    return torch.from_numpy(np.concatenate([-upper[::-1], upper]).astype(np.float32))
