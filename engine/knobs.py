"""Numbers that change from step to step, packed in one float32 and one int64 vector.

Separate scalars recompile on XLA when one reaches 0 or 1 or equals another; slices of a vector never do, and the
vector is one transfer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bits.environment import Environment

FLOATS = ("lr", "eps", "step_size", "ema_weight")
INTS = ("step",)


@dataclass(frozen=True, slots=True)
class Knobs:
    """`floats` float32 (len(FLOATS),) and `ints` int64 (len(INTS),), on the host or the device."""

    floats: Tensor
    ints: Tensor
    # Of the training attack in this step; None: the recipe's. A host number: it says how often a graph is run.
    attack_steps: int | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The 0-dim slice called `name`."""
        return self.floats[FLOATS.index(name)] if name in FLOATS else self.ints[INTS.index(name)]

    def replaced(self, name: str, value: Tensor) -> "Knobs":
        """The same with `value` (0-dim float32, on the device) as the float called `name`."""
        floats = [value if name == each else self[each] for each in FLOATS]
        return Knobs(torch.stack(floats), self.ints, self.attack_steps)


def pack_knobs(
    *,
    lr: float,
    eps: float,
    step_size: float,
    step: int,
    ema_weight: float = 0.0,
    attack_steps: int | None = None,
) -> Knobs:
    """Host vectors: lr as a plain number, eps and step_size in image units [0, 1], step counted from 0, `ema_weight`
    the share of the average that is new."""
    floats = torch.tensor([lr, eps, step_size, ema_weight], dtype=torch.float32)
    return Knobs(floats, torch.tensor([step], dtype=torch.int64), attack_steps)


def feed_knobs(env: Environment, knobs: Knobs) -> Knobs:
    """The same on the device; `attack_steps` stays on the host."""
    fed = env.feed({"floats": knobs.floats, "ints": knobs.ints}, split=False)
    return Knobs(fed["floats"], fed["ints"], knobs.attack_steps)
