"""Floating-point operations of convolutions and dots in compiled text; on a TPU every matrix product is one of them.

Counted as XLA counts: two for each multiply-add, and none where a kernel lies in the padding or between the values of
a dilated input. TPUs write a batch of products as a convolution with the batch as a dilated spatial axis; those gaps
cost nothing here either.
"""

import re
from functools import lru_cache
from math import prod
from typing import NamedTuple

from engine.tpu.layout import Shape
from engine.tpu.program import Computation, Instruction

OPCODES = ("convolution", "dot")
WINDOW = re.compile(r"window=\{([^}]*)\}")
LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
GROUPS = re.compile(r"(feature|batch)_group_count=(\d+)")
CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
PRECISION = re.compile(r"operand_precision=\{(\w+),\s*(\w+)\}")


class Axis(NamedTuple):
    """A spatial axis of a window."""

    size: int
    stride: int = 1
    low: int = 0  # padding before
    base: int = 1  # dilation of the input
    window: int = 1  # dilation of the kernel


class Product(NamedTuple):
    """What a convolution or dot does."""

    flops: int
    operands: str  # dtypes, such as "bf16 x bf16"
    precision: str  # default, high or highest


def product_of(instruction: Instruction, scope: Computation) -> Product:
    """Of one convolution or dot; its operands are looked up in `scope`."""
    left, right = (scope[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    count = _convolution if instruction.opcode == "convolution" else _dot
    found = PRECISION.search(instruction.attributes)
    return Product(
        flops=2 * count(instruction.attributes, left, right, out),
        operands=f"{left.dtype} x {right.dtype}",
        precision="default" if found is None else min(found[1], found[2], key=_rank),
    )


def _rank(precision: str) -> int:
    return ("default", "high", "highest").index(precision)


def _dot(attributes: str, left: Shape, right: Shape, out: Shape) -> int:
    found = CONTRACTED.search(attributes)
    axes = [int(axis) for axis in found[1].split(",") if axis] if found else []
    return prod(out.dims) * prod(left.dims[axis] for axis in axes)


def _convolution(attributes: str, left: Shape, right: Shape, out: Shape) -> int:
    labels = LABELS.search(attributes)
    assert labels is not None, f"a convolution without dim_labels: {attributes[:80]}"
    inputs, _, outputs = labels.groups()
    groups = {kind: int(count) for kind, count in GROUPS.findall(attributes)}
    axes = read_window(attributes)
    positions = [
        _positions(axis, left.dims[inputs.index(str(place))], out.dims[outputs.index(str(place))])
        for place, axis in enumerate(axes)
    ]
    features = left.dims[inputs.index("f")] // groups.get("feature", 1)
    batch = left.dims[inputs.index("b")] // groups.get("batch", 1)
    return prod(positions) * features * batch * out.dims[outputs.index("f")]


def read_window(attributes: str) -> list[Axis]:
    """From `window={size=3x3 stride=2x2 pad=0_1x0_1 lhs_dilate=1x2 rhs_dilate=1x1}`; none without spatial axes."""
    found = WINDOW.search(attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}
    if "size" not in fields:
        return []
    sizes = fields["size"].split("x")

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(sizes)

    columns = zip(
        sizes,
        values("stride", "1"),
        values("pad", "0_0"),
        values("lhs_dilate", "1"),
        values("rhs_dilate", "1"),
        strict=True,
    )
    return [
        Axis(int(size), int(stride), int(pad.split("_")[0]), int(base), int(window))
        for size, stride, pad, base, window in columns
    ]


@lru_cache(maxsize=4096)
def _positions(axis: Axis, size: int, out: int) -> int:
    """Pairs of an output and a kernel place that meet a value of the input."""
    end = (size - 1) * axis.base
    places = (
        step * axis.stride - axis.low + tap * axis.window for step in range(out) for tap in range(axis.size)
    )
    return sum(0 <= place <= end and place % axis.base == 0 for place in places)
