"""What is kept of a tensor so that two backends can be compared without keeping the tensor: a mark.

Of up to WHOLE values all of them; of more the norm, the largest, an even sample, and a sketch: random sums of signed
values (Alon et al. 1996, tug-of-war), equal on every backend. A sketch is linear, so the distance of two sketches tells
that of the two tensors, to about 5 %, and inner products as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal[
    "batch",  # bytes and draws, on the host
    "image",  # augmented and mixed
    "target",
    "attack start",
    "attack logits",  # of the attack's first step
    "attack gradient",  # of the attack's first step, by the image
    "attacked",  # what a forward pass of the update is given
    "activation",
    "loss",
    "statistics",  # BatchNorm's running ones: their change in the step
    "gradient",  # of a parameter, before clipping
    "clipped",  # of a parameter, behind the clipping
    "update",  # of a parameter
    "average",  # its change in the step
    "hint",  # of the reference alone, for the diagnosis
]
KINDS: tuple[Kind, ...] = get_args(Kind)
HINT_OTHER_ORDER = "image, mixing and erasing in the other order"
HINT_WEIGHT = "weight "  # before the update
WHOLE = 16_384  # values
SAMPLE = 4096
FACTS = 3  # numbers in front of the values
ROWS, COLUMNS = 8, 512  # of a sketch
Tag = Literal["norm", "drop", "matmul", "between"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One tensor of one step, on the host."""

    kind: Kind
    where: str  # module or parameter
    part: str = ""  # which micro-batch, replay or forward pass, where there are several
    dtype: str
    count: int  # values
    maker: str = ""  # class of the module that made it, with its settings
    tags: tuple[Tag, ...] = ()
    beside: float = 0.0  # norm of what it is a change of: no change is known better than that one's rounding
    norm: float = 0.0
    largest: float = 0.0
    values: Tensor = field(default_factory=lambda: torch.zeros(0))  # all of them, or the sample
    sketch: Tensor = field(default_factory=lambda: torch.zeros(0))  # empty where `values` are all

    @property
    def name(self) -> tuple[str, str, str]:
        """What the mark of the same tensor has on another backend."""
        return (self.kind, self.part, self.where)

    @property
    def direction(self) -> Tensor:
        """float64, linear in the tensor: its length is the tensor's."""
        return (self.sketch if len(self.sketch) else self.values).double()


def measure(tensor: Tensor, beside: Tensor | None = None) -> Tensor:
    """float32 [3 + values + sketch] on the tensor's device: norm, largest magnitude, norm of `beside`, values, sketch.

    No host read.
    """
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        flat = tensor.detach().reshape(-1).to(torch.float32)
        norm = torch.linalg.vector_norm(flat)
        other = torch.zeros_like(norm) if beside is None else torch.linalg.vector_norm(beside.float())
        facts = torch.stack([norm, flat.abs().max(), other])
        if flat.numel() <= WHOLE:
            return torch.cat([facts, flat])
        sample = flat[:: flat.numel() // SAMPLE][:SAMPLE]
        rows = math.ceil(flat.numel() / COLUMNS)
        padded = F.pad(flat, (0, rows * COLUMNS - flat.numel())).reshape(rows, COLUMNS)
        sketch = _signs(rows, flat.device) @ padded
        return torch.cat([facts, sample, sketch.reshape(-1)])


@cache
def _signs(rows: int, device: torch.device) -> Tensor:
    """float32 (ROWS, rows), each +-1 / sqrt(ROWS), the same on every backend."""
    generator = torch.Generator().manual_seed(rows)
    signs = torch.randint(0, 2, (ROWS, rows), generator=generator) * 2 - 1
    return (signs / math.sqrt(ROWS)).to(device)


def read(measured: Tensor, **facts: Any) -> Mark:
    """The mark that `measure` has made, from the host copy of its answer."""
    count, values = facts["count"], measured[FACTS:]
    kept = len(values) if count <= WHOLE else SAMPLE
    return Mark(
        norm=float(measured[0]),
        largest=float(measured[1]),
        beside=float(measured[2]),
        values=values[:kept].clone(),
        sketch=values[kept:].clone(),
        **facts,
    )


def pack(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Plain values and tensors, for a file that loads with weights_only=True."""
    return [{name: getattr(mark, name) for name in Mark.__slots__} for mark in marks]


def unpack(packed: Sequence[dict[str, Any]]) -> list[Mark]:
    """The marks of `pack`."""
    return [Mark(**{**entry, "tags": tuple(entry["tags"])}) for entry in packed]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two marks of the same tensor are apart."""

    length: float  # of the difference
    relative: float  # over that of the reference
    largest: float  # difference of two values; of a sample where not all were kept
    share: float  # of the values: how many differ by more than rounding


FAR = Distance(math.inf, math.inf, math.inf, 1.0)


def distance(reference: Mark, other: Mark) -> Distance:
    """Infinite where a number is not finite on one side, or shapes differ; 0 where both hold the same."""
    if reference.count != other.count:
        return FAR
    a, b = reference.values.double(), other.values.double()
    if torch.equal(a, b) and torch.equal(reference.sketch, other.sketch):
        return Distance(0.0, 0.0, 0.0, 0.0)
    gap = (a - b).abs()
    length = float((reference.direction - other.direction).norm())
    relative = length / reference.norm if reference.norm > 0 else math.inf if length > 0 else 0.0
    rounding = 1e-5 * a.abs() + 1e-6 * reference.largest
    share = float((gap > rounding).double().mean())
    return Distance(length, relative, float(gap.max()), share) if math.isfinite(length) else FAR


def is_rounded_to_bf16(mark: Mark) -> bool:
    """Whether (nearly) all values could be bf16 although they are kept as float32: somebody rounded them."""
    values = mark.values[mark.values != 0]
    if mark.dtype != "float32" or len(values) < 4:
        return False
    return bool((values == values.bfloat16().float()).double().mean() > 0.99)
