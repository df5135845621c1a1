"""The runs that APGD in l1 is made of, and where in them a lane stands (Croce and Hein 2021, arXiv:2103.01208).

As in the published AutoAttack: 30 % of the iterations in a ball of three times the radius, 30 % in one of twice the
radius, the rest in the ball itself. A run of n iterations has n + 1 steps: the first looks at its start.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

LARGE = ((3.0, 0.3), (2.0, 0.3))  # radii, and shares of the iterations, of the runs before the last
WINDOW = 0.04  # share of a run's iterations


class Run(NamedTuple):
    """A part of the attack, in a ball of its own."""

    radius: float  # in units of the lane's
    iterations: int

    @property
    def window(self) -> int:
        """Iterations between two looks at the sparsity."""
        return max(int(WINDOW * self.iterations), 1)


class Place(NamedTuple):
    """Where each lane stands, all [B]."""

    step: Tensor  # int64: of the run
    window: Tensor  # int64: of the run
    radius: Tensor  # of the run's ball, pixel units
    next_radius: Tensor  # of the ball that the next iterate belongs in
    is_end: Tensor  # bool: the last step of a run that another one follows
    is_last: Tensor  # bool: in the last run


def runs_of(iterations: int, *, large_first: bool) -> tuple[Run, ...]:
    """In turn; `iterations` are those of all together."""
    runs = [Run(radius, math.ceil(share * iterations)) for radius, share in LARGE] if large_first else []
    return (*runs, Run(1.0, iterations - sum(run.iterations for run in runs)))


def place_of(runs: tuple[Run, ...], step: Tensor, eps: Tensor) -> Place:
    """Of lanes at `step` int64 [B] of the attack, of radius `eps` [B]. Constants picked by comparing: one graph."""
    place = Place(
        step=step,
        window=torch.full_like(step, runs[0].window),
        radius=runs[0].radius * eps,
        next_radius=runs[0].radius * eps,
        is_end=step < 0,
        is_last=step >= sum(run.iterations + 1 for run in runs[:-1]),
    )
    first = 0
    for before, run in pairwise(runs):
        first += before.iterations + 1
        is_here, is_next = step >= first, step >= first - 1
        place = place._replace(
            step=torch.where(is_here, step - first, place.step),
            window=torch.where(is_here, run.window, place.window),
            radius=torch.where(is_here, run.radius * eps, place.radius),
            next_radius=torch.where(is_next, run.radius * eps, place.next_radius),
            is_end=place.is_end | (step == first - 1),
        )
    return place
