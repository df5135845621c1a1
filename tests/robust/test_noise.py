"""Counter-hash noise: fixed for ever, uniform, and without a trace of its seeds and positions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from robust.noise import noise

# In units of 2**-24. Changing one of these changes every attack ever made.
GOLDEN = {
    0: [9308334, 10115480, 11099584],
    1: [3290782, 133118, 792776],
    2**62 - 1: [1235391, 9990031, 3792771],
    123456789012345: [2488842, 4022691, 6398037],
}


def chi_square(counts: Tensor) -> float:
    """Deviation from equal counts in standard deviations of the statistic."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.numel() - 1
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def bins(values: Tensor, number: int) -> Tensor:
    return (values * number).long()


def seeds_around(start: int, number: int = 4096) -> Tensor:
    return torch.arange(start, start + number, dtype=torch.int64)


def test_golden_values() -> None:
    found = noise(torch.tensor(list(GOLDEN)), (3,))
    assert found.dtype == torch.float32
    assert (found * 2**24).long().tolist() == list(GOLDEN.values())


def test_shape_only_shapes() -> None:
    seed = torch.tensor([5, 6])
    assert torch.equal(noise(seed, (3, 4, 5)).reshape(2, 60), noise(seed, (60,)))
    assert torch.equal(noise(seed, (7,)), noise(seed, (60,))[:, :7]), "a longer image begins with the shorter"


def test_a_samples_noise_is_its_own() -> None:
    seed = seeds_around(100, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise(seed[order], (8,)), noise(seed, (8,))[order])
    assert torch.equal(noise(seed[3:4], (8,)), noise(seed, (8,))[3:4])


@pytest.mark.parametrize("start", [0, 2**31 - 2048, 2**40, 2**62 - 4096, -2048])
def test_uniform_in_the_unit_interval(start: int) -> None:
    """All values, the first of each seed, the low bits, and every single bit."""
    values = noise(seeds_around(start), (256,))
    assert 0.0 <= values.min() < 1e-4
    assert 1.0 - 1e-4 < values.max() < 1.0
    assert abs(chi_square(torch.bincount(bins(values.flatten(), 1024), minlength=1024))) < 5
    assert abs(chi_square(torch.bincount(bins(values[:, 0], 64), minlength=64))) < 5
    integers = (values * 2**24).long()
    assert abs(chi_square(torch.bincount((integers & 255).flatten(), minlength=256))) < 5
    ones = torch.stack([((integers >> bit) & 1).double().mean() for bit in range(24)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / np.sqrt(values.numel())


@pytest.mark.parametrize("distance", [1, 2, 2**16, 2**31, 2**32, 2**61])
def test_neighbouring_seeds_are_independent(distance: int) -> None:
    seed = seeds_around(12345)
    a, b = noise(seed, (64,)).flatten(), noise(seed + distance, (64,)).flatten()
    pairs = torch.bincount(bins(a, 32) * 32 + bins(b, 32), minlength=1024)
    assert abs(chi_square(pairs)) < 5
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(a))


@pytest.mark.parametrize("lag", [1, 2, 3, 32, 224, 1024])
def test_neighbouring_positions_are_independent(lag: int) -> None:
    values = noise(seeds_around(0, 64), (4096,))
    a, b = values[:, :-lag].flatten(), values[:, lag:].flatten()
    pairs = torch.bincount(bins(a, 32) * 32 + bins(b, 32), minlength=1024)
    assert abs(chi_square(pairs)) < 5
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / np.sqrt(len(a))


def test_no_two_seeds_share_their_noise() -> None:
    """Four values are 96 bits: among 200,000 seeds none may repeat. Seeds as samples have them, and dense."""
    hashed = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63, 100_000))
    seed = torch.cat([torch.arange(100_000), hashed])
    rows = (noise(seed, (4,)) * 2**24).long()
    packed = torch.stack([rows[:, 0] << 24 | rows[:, 1], rows[:, 2] << 24 | rows[:, 3]], dim=1)
    assert len(torch.unique(packed, dim=0)) == len(seed)


def test_no_shifted_copy() -> None:
    """Two streams of one counter would show the same values at other places."""
    values = (noise(seeds_around(0, 256), (4096,)) * 2**24).long()
    # Single values of 24 bits do repeat among a million; runs of three do not.
    triples = values[:, :-2] << 40 ^ values[:, 1:-1] << 20 ^ values[:, 2:]
    assert len(torch.unique(triples)) == triples.numel()
