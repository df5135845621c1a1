"""Affine warps of a batch, each sample by its own matrix, as Pillow's Image.transform computes them.

Four or sixteen gathers instead of F.grid_sample, which leaves the device on torch_xla 2.9. The three channels of a
pixel travel in one int32, so a gather fetches all of them.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from data.fill import filled

Filter = Literal["bilinear", "bicubic"]

# N samples, H rows, W columns, P = H * W; levels are float32 that hold whole numbers 0..255.


def warp(levels: Tensor, matrix: Tensor, *, fill: Sequence[int], interpolation: Filter) -> Tensor:
    """levels (N,3,H,W) and matrix float32 (N,6) -> levels (N,3,H,W).

    A matrix (a,b,c,d,e,f) fetches output pixel (x,y) from (ax + by + c, dx + ey + f), pixel centres at .5; what
    lies outside the picture becomes `fill`. (1,0,0,0,1,0) returns the same levels, bit for bit. Pillow computes in
    float64 and cuts the fraction off: here up to 3 % of the values are a level beside its own.
    """
    num, _, height, width = levels.shape
    assert height * width < 1 << 24, f"{height}x{width} pixels cannot be counted in float32"
    x, y = _source(matrix, height=height, width=width)
    taps = _Taps(_pack(levels), x - 0.5, y - 0.5, height=height, width=width)
    values = taps.bilinear() if interpolation == "bilinear" else taps.bicubic()
    kept = values.floor().clamp(0, 255).reshape(num, 3, height, width)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    colour = filled(fill, device=levels.device, dtype=levels.dtype)[:, None, None]
    return torch.where(is_inside.reshape(num, 1, height, width), kept, colour)


def _source(matrix: Tensor, *, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each output pixel comes from: x and y, float32 (N,P)."""
    y = torch.arange(height, device=matrix.device, dtype=matrix.dtype)[:, None] + 0.5
    x = torch.arange(width, device=matrix.device, dtype=matrix.dtype)[None, :] + 0.5
    a, b, c, d, e, f = (matrix[:, column, None, None] for column in range(6))
    return (a * x + b * y + c).flatten(1), (d * x + e * y + f).flatten(1)


def _pack(levels: Tensor) -> Tensor:
    """(N,3,H,W) -> int32 (N,P), the first channel in the lowest byte."""
    red, green, blue = levels.flatten(2).to(torch.int32).unbind(1)
    return red | green << 8 | blue << 16


class _Taps:
    """Pixels around the points (x, y), float32 (N,P) in pixels from the centre of the first; edges are repeated."""

    def __init__(self, packed: Tensor, x: Tensor, y: Tensor, *, height: int, width: int) -> None:
        self.packed, self.height, self.width = packed, height, width
        self.left, self.top = x.floor(), y.floor()
        self.right_share = (x - self.left)[:, None]  # (N,1,P)
        self.lower_share = (y - self.top)[:, None]
        self.shifts = 8 * torch.arange(3, dtype=torch.int32, device=packed.device)[:, None]

    def bilinear(self) -> Tensor:
        """(N,3,P)"""
        rows = [_line(self._at(j, 0), self._at(j, 1), self.right_share) for j in (0, 1)]
        return _line(rows[0], rows[1], self.lower_share)

    def bicubic(self) -> Tensor:
        """(N,3,P), with Pillow's sharp kernel (a = -1)."""
        rows = [_cubic([self._at(j, i) for i in (-1, 0, 1, 2)], self.right_share) for j in (-1, 0, 1, 2)]
        return _cubic(rows, self.lower_share)

    def _at(self, down: int, right: int) -> Tensor:
        row = (self.top + down).clamp(0, self.height - 1)
        column = (self.left + right).clamp(0, self.width - 1)
        pixel = torch.gather(self.packed, 1, (row * self.width + column).to(torch.int32))
        return (torch.bitwise_right_shift(pixel[:, None], self.shifts) & 255).to(torch.float32)


def _line(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return first + (second - first) * share


def _cubic(v: Sequence[Tensor], share: Tensor) -> Tensor:
    linear = v[2] - v[0]
    square = 2 * (v[0] - v[1]) + v[2] - v[3]
    cube = v[1] - v[0] - v[2] + v[3]
    return v[1] + share * (linear + share * (square + share * cube))
