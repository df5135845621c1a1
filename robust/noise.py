"""Counter-hash noise: the same uniform numbers on every backend, keyed by a per-sample seed.

Device generators differ by backend (and torch_xla's is not torch's), so noise images come from an integer
hash of (seed of the sample, index of the value). It is bit-equal on cpu, cuda and xla, does not depend on the
place of a sample in the batch, and needs no state to be saved.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Multipliers of the "lowbias32" integer finaliser (C. Wellons, hash-prospector, public domain) and the
# 32-bit golden ratio, all written as signed int32 because torch_xla has no unsigned 32-bit arithmetic.
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)
_MASK_31 = 0x7FFFFFFF


def _logical_shift(x: Tensor, count: int) -> Tensor:
    # `x >> count` truncates toward zero for negative int32 on torch_xla 2.9; bitwise_right_shift is right.
    return torch.bitwise_right_shift(x, count) & ((1 << (32 - count)) - 1)


def _mix(x: Tensor, key: Tensor | int) -> Tensor:
    """Two rounds of xor-shift-multiply on int32, with `key` added between them."""
    x = (x ^ _logical_shift(x, 16)) * _MULTIPLY_1 + key
    x = (x ^ _logical_shift(x, 15)) * _MULTIPLY_2
    return x ^ _logical_shift(x, 16)


def noise(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform float32 numbers in [0, 1), shape (N, *shape), from `seed` int64 (N,).

    The low 62 bits of each seed are used. Values are multiples of 2**-24. Two samples with equal seeds get
    equal noise; the value at one place never depends on the other samples.
    """
    low = (seed & _MASK_31).to(torch.int32)
    high = (torch.bitwise_right_shift(seed, 31) & _MASK_31).to(torch.int32)
    first = _mix(low, high)[:, None]
    second = _mix(high ^ _GOLDEN, low)[:, None]
    index = torch.arange(math.prod(shape), dtype=torch.int32, device=seed.device)[None, :]
    bits = _mix((index * _GOLDEN) ^ first, second)
    return (_logical_shift(bits, 8).to(torch.float32) * 2.0**-24).reshape(seed.shape[0], *shape)
