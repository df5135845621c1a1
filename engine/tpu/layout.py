"""Shapes as XLA's text writes them: bf16[64,197,384]{2,1,0:T(8,128)(2,1)S(1)}, with the bytes they take on a TPU.

Behind the colon: T(8,128) tiles the two fastest axes (a second tile orders values within the first and pads
nothing), S(1) is the memory space: none is HBM, 1 the vector memory on the chip, 5 the host. Tiles are filled up:
197 rows take 200, 49 columns take 128.
"""

import re
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

SHAPE = re.compile(r"\b(?P<dtype>[a-z]\w*)\[(?P<dims>[\d,<=]*)\](?:\{(?P<layout>[^}]*)\})?")
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
HBM, VMEM, HOST = 0, 1, 5


class Shape(NamedTuple):
    """Of one array."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]  # of the fastest axes, the fastest one last; empty: none
    space: int

    @property
    def bits(self) -> int:
        known = BITS.get(self.dtype)
        if known is not None:
            return known
        number = re.search(r"\d+", self.dtype)  # f32, s64, f8e4m3fn
        return int(number[0]) if number else 0

    @property
    def unpadded(self) -> int:
        """Bytes of the values."""
        return prod(self.dims) * self.bits // 8

    @property
    def padded(self) -> int:
        """Bytes in memory, tiles filled up."""
        sizes = [self.dims[axis] for axis in reversed(self.minor_to_major)]  # the fastest one last
        if not self.tile:
            return self.unpadded
        sizes = [1] * (len(self.tile) - len(sizes)) + sizes
        tiled = sizes[len(sizes) - len(self.tile) :]
        filled = [ceil(size / side) * side for size, side in zip(tiled, self.tile, strict=True)]
        return prod(sizes[: len(sizes) - len(self.tile)]) * prod(filled) * self.bits // 8

    def __str__(self) -> str:
        tile = f" T({','.join(map(str, self.tile))})" if self.tile else ""
        return f"{self.dtype}[{','.join(map(str, self.dims))}]{tile}"


@lru_cache(maxsize=4096)
def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Every array in a shape: one, or all of a tuple's. Control tokens take no bytes."""
    return tuple(_shape(found) for found in SHAPE.finditer(text))


def _shape(found: re.Match[str]) -> Shape:
    dims = tuple(int(size.lstrip("<=")) for size in found["dims"].split(",") if size)
    order, _, rest = (found["layout"] or "").partition(":")
    minor = tuple(int(axis) for axis in order.split(",") if axis.strip().isdigit())
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype=found["dtype"],
        dims=dims,
        minor_to_major=minor if len(minor) == len(dims) else tuple(reversed(range(len(dims)))),
        tile=tuple(int(side) for side in tile[1].split(",")) if tile else (),
        space=int(space[1]) if space else HBM,
    )
