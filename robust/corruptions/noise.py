"""gaussian_noise, shot_noise, impulse_noise and speckle_noise: every value of every pixel has its own draw."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import NUM_HALVES, halves, normal
from robust.noise import logical_shift, random_bits

# N images; levels (N,3,H,W) hold whole numbers 0..255 as float32.
_COLUMNS = 128  # of the alias table: counts that can come; above 60 + 8 standard deviations nothing does
_COIN_BITS = 24


def gaussian_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Normal noise of one standard deviation."""
    return levels.add(_normal_like(levels, seed), alpha=255 * tables.GAUSSIAN_NOISE[severity - 1])


def speckle_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Normal noise in proportion to the value."""
    return levels.addcmul(levels, _normal_like(levels, seed), value=tables.SPECKLE_NOISE[severity - 1])


def impulse_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Some values become 0 and as many 255, each channel for itself (skimage's s&p)."""
    limit = round(tables.IMPULSE_NOISE[severity - 1] * NUM_HALVES)
    draw = halves(seed, levels[0].numel()).reshape(levels.shape).to(torch.float32)
    return levels * (1 - _below(draw, limit)) + 255 * _below(draw, limit // 2)


def _below(draw: Tensor, limit: int) -> Tensor:
    """1 where a whole number is below the limit, else 0; a CPU takes a third of the time of a comparison."""
    return (limit - draw).clamp(0.0, 1.0)


def shot_noise(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Poisson counts of photons, by the alias method (Walker 1977): exact to 2**-24, one look-up a value."""
    photons = tables.SHOT_NOISE[severity - 1]
    bits = random_bits(seed, levels[0].numel()).reshape(levels.shape)
    # Shifted, not masked alone: torch_xla 2.9 cannot convert a mask of random bits to float.
    column, coin = logical_shift(bits, 25), logical_shift(bits, 1) & ((1 << _COIN_BITS) - 1)
    place = levels.to(torch.int32) * _COLUMNS + column
    entry = _poisson_table(photons).to(seed.device).index_select(0, place.flatten()).reshape(levels.shape)
    is_own = coin < logical_shift(entry, 7)
    count = torch.where(is_own, column, entry & (_COLUMNS - 1))
    return count.to(torch.float32) * (255 / photons)


def _normal_like(levels: Tensor, seed: Tensor) -> Tensor:
    return normal(seed, levels[0].numel()).reshape(levels.shape)


@lru_cache(maxsize=len(tables.SHOT_NOISE))
def _poisson_table(photons: int) -> Tensor:
    """int32 [256*128]: for level and column, threshold of the coin << 7 | the other count."""
    rows = [_alias(_poisson(level / 255 * photons)) for level in range(256)]
    return torch.from_numpy(np.concatenate(rows).astype(np.int32))


def _poisson(mean: float) -> NDArray[np.float64]:
    """Probabilities [128] of the counts."""
    probability = np.zeros(_COLUMNS)
    probability[0] = np.exp(-mean)
    for count in range(1, _COLUMNS):
        probability[count] = probability[count - 1] * mean / count
    normalised: NDArray[np.float64] = probability / probability.sum()
    return normalised


def _alias(probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """Vose's construction (1991), entries packed."""
    scaled = (probability * _COLUMNS).tolist()
    small = [column for column in range(_COLUMNS) if scaled[column] < 1]
    large = [column for column in range(_COLUMNS) if scaled[column] >= 1]
    threshold, other = np.ones(_COLUMNS), np.arange(_COLUMNS)
    while small and large:
        less, more = small.pop(), large[-1]
        threshold[less], other[less] = scaled[less], more
        scaled[more] -= 1 - scaled[less]
        if scaled[more] < 1:
            small.append(large.pop())
    # One below the full scale: the entry has 31 bits, and a full column is its own alias.
    coins = np.minimum(np.round(threshold * (1 << _COIN_BITS)), (1 << _COIN_BITS) - 1).astype(np.int64)
    return coins << 7 | other
