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


def logical_shift(x: Tensor, count: int) -> Tensor:
    """int32 shifted right by `count` places, zeros coming in: a tensor of its own."""
    # `x >> count` truncates toward zero for negative int32 on torch_xla 2.9; bitwise_right_shift is right.
    return torch.bitwise_right_shift(x, count).bitwise_and_((1 << (32 - count)) - 1)


def _mix(x: Tensor, key: Tensor | int) -> Tensor:
    """Two rounds of xor-shift-multiply on int32, with `key` added between them."""
    # In place, on what the shifts return: a third of the time on a CPU.
    x = logical_shift(x, 16).bitwise_xor_(x).mul_(_MULTIPLY_1).add_(key)
    x = logical_shift(x, 15).bitwise_xor_(x).mul_(_MULTIPLY_2)
    return logical_shift(x, 16).bitwise_xor_(x)


def noise(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform float32 numbers in [0, 1), shape (N, *shape), from `seed` int64 (N,).

    The low 62 bits of each seed are used. Values are multiples of 2**-24. Two samples with equal seeds get
    equal noise; the value at one place never depends on the other samples.
    """
    values = logical_shift(random_bits(seed, math.prod(shape)), 8).to(torch.float32) * 2.0**-24
    return values.reshape(seed.shape[0], *shape)


def random_bits(seed: Tensor, count: int) -> Tensor:
    """32 random bits each: int32 (N, count); of their upper 24 `noise` makes its numbers."""
    low = (seed & _MASK_31).to(torch.int32)
    high = (torch.bitwise_right_shift(seed, 31) & _MASK_31).to(torch.int32)
    first = _mix(low, high)[:, None]
    second = _mix(high ^ _GOLDEN, low)[:, None]
    index = torch.arange(count, dtype=torch.int32, device=seed.device)[None, :]
    return _mix((index * _GOLDEN) ^ first, second)
