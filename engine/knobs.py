"""Numbers that change from step to step, packed in one float32 and one int64 vector.

Separate scalars recompile on XLA when one reaches 0 or 1 or equals another; slices of a vector never do, and the
vector is one transfer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = ("lr", "eps", "step_size")
INTS = ("step",)


class Knobs(NamedTuple):
    """`floats` float32 (len(FLOATS),) and `ints` int64 (len(INTS),), on the host or the device."""

    floats: Tensor
    ints: Tensor

    def __getitem__(self, name: str) -> Tensor:  # type: ignore[override]
        """The 0-dim slice called `name`."""
        return self.floats[FLOATS.index(name)] if name in FLOATS else self.ints[INTS.index(name)]


def pack_knobs(*, lr: float, eps: float, step_size: float, step: int) -> Knobs:
    """Host vectors: lr as a plain number, eps and step_size in image units [0, 1], step counted from 0."""
    return Knobs(
        torch.tensor([lr, eps, step_size], dtype=torch.float32), torch.tensor([step], dtype=torch.int64)
    )
