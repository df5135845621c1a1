"""JPEG as arithmetic: what libjpeg does to an image at a quality, without the lossless part in between.

Colours to YCbCr, chroma halved in both directions, cosine transform of blocks, quantisation by the standard's tables
(ITU T.81, Annex K) at libjpeg's scaling, and the way back with libjpeg's "fancy" upsampling. The transforms are exact
here and integer approximations there; a coefficient that lies between two steps may fall to the other side. Products
are sums of products, not matrix products, which TPUs would round.
"""

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

# N images; levels (N,3,H,W) hold whole numbers 0..255 as float32; planes are (N,h,w).
_LUMA: Final = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_CORNER: Final = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
_BLOCK: Final = 8


def compressed(levels: Tensor, quality: int) -> Tensor:
    """levels -> levels. Sides that are no multiple of 16 are continued by their last pixels, as libjpeg does."""
    height, width = levels.shape[-2:]
    padded = _continued(levels, 2 * _BLOCK)
    red, green, blue = padded.unbind(1)
    luma = _rounded(0.299 * red + 0.587 * green + 0.114 * blue)
    first = _rounded(-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128)
    second = _rounded(0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128)
    luma = _coded(luma, _scaled(_luma_table(), quality))
    chroma = _scaled(_chroma_table(), quality)
    first, second = (_doubled(_coded(_halved(plane), chroma)) - 128 for plane in (first, second))
    colours = [
        luma + _rounded(1.402 * second),
        luma + _rounded(-0.344136286 * first - 0.714136286 * second),
        luma + _rounded(1.772 * first),
    ]
    return torch.stack(colours, dim=1)[..., :height, :width].clamp(0.0, 255.0)


def _rounded(value: Tensor) -> Tensor:
    return (value + 0.5).floor()


def _continued(levels: Tensor, multiple: int) -> Tensor:
    for axis in (-2, -1):
        missing = -levels.shape[axis] % multiple
        if missing:
            last = levels.narrow(axis, levels.shape[axis] - 1, 1)
            levels = torch.cat([levels, last.repeat_interleave(missing, dim=axis)], dim=axis)
    return levels


def _halved(plane: Tensor) -> Tensor:
    """Means of 2x2, halves rounded up in odd columns and down in even ones."""
    num, height, width = plane.shape
    total = plane.reshape(num, height // 2, 2, width // 2, 2).sum(dim=(2, 4))
    bias = 1 + torch.arange(width // 2, device=plane.device) % 2
    return ((total + bias) / 4).floor()


def _doubled(plane: Tensor) -> Tensor:
    """libjpeg's fancy upsampling: weights of 3/4 and 1/4, down and across."""
    above = torch.cat([plane[:, :1], plane[:, :-1]], dim=1)
    below = torch.cat([plane[:, 1:], plane[:, -1:]], dim=1)
    tall = torch.stack([3 * plane + above, 3 * plane + below], dim=2).flatten(1, 2)
    before = torch.cat([tall[..., :1], tall[..., :-1]], dim=-1)
    behind = torch.cat([tall[..., 1:], tall[..., -1:]], dim=-1)
    pair = torch.stack([(3 * tall + before + 8) / 16, (3 * tall + behind + 7) / 16], dim=-1)
    return pair.flatten(-2).floor()


def _coded(plane: Tensor, table: Tensor) -> Tensor:
    """Through the quantised cosine transform of its blocks, and back to whole levels."""
    num, height, width = plane.shape
    blocks = plane.reshape(num, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).transpose(2, 3) - 128
    basis, table = _basis().to(plane.device), table.to(plane.device)
    steps = _along_both(blocks, basis) / table
    whole = torch.sign(steps) * (steps.abs() + 0.5).floor()  # halves away from zero
    back = _along_both(whole * table, basis.T)
    levels = _rounded(back + 128).clamp(0.0, 255.0)
    return levels.transpose(2, 3).reshape(num, height, width)


def _along_both(blocks: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ block @ matrix.T of (...,8,8)."""
    down = (matrix[:, :, None] * blocks[..., None, :, :]).sum(dim=-2)
    return (down[..., None, :] * matrix).sum(dim=-1)


@lru_cache(maxsize=1)
def _basis() -> Tensor:
    """float32 [8,8]: cosines by frequency and place, orthonormal."""
    rows = [
        [
            math.sqrt((1 if frequency == 0 else 2) / _BLOCK)
            * math.cos((2 * place + 1) * frequency * math.pi / (2 * _BLOCK))
            for place in range(_BLOCK)
        ]
        for frequency in range(_BLOCK)
    ]
    return torch.tensor(rows)


def _luma_table() -> Tensor:
    return torch.tensor(_LUMA)


def _chroma_table() -> Tensor:
    table = torch.full((_BLOCK, _BLOCK), 99)
    table[:4, :4] = torch.tensor(_CHROMA_CORNER)
    return table


def _scaled(table: Tensor, quality: int) -> Tensor:
    """libjpeg's steps at a quality from 1 to 100, on the host."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((table * percent + 50) // 100).clamp(1, 255).to(torch.float32)
