"""The shortest way from a point to a hyperplane inside the box [0, 1], in a norm: what FAB does twice a step.

For w.z = b and a point x, the coordinates move in the directions s_i = sign((b - w.x) w_i), each at most to its wall at
distance r_i. In linf all move by min(t, r_i), in l2 by min(t |w_i|, r_i), in l1 those with |w_i| > t go to their walls;
t solves

    g(t) = sum_i |w_i| move_i(t) = |b - w.x|.

In linf and l2 g rises, is concave and piecewise linear, so Newton's method from 0 comes near from below and ends after
finitely many steps: a pass over the coordinates each, where the published code (Croce and Hein 2020, arXiv:1907.02044,
appendix) sorts them and searches. A fixed number of steps makes the shape static.

In l1 g falls, and jumps wherever t meets a coordinate: the one at which it passes the goal goes but a part of its way.
The threshold is searched between brackets, by interpolation and by halving in turn, then by halving alone; what is left
between the brackets in the end goes the same part of its way, so the plane is met to rounding. 24 passes leave one
coordinate there as a rule, and where more, a length within 1e-8 of the shortest. They cost about half of a
sort of 64 x 3,072 or 8 x 150,528 numbers on the cpu.
"""

import torch
from torch import Tensor

from robust.lanes import Norm

# Residuals below 1e-6 of what all coordinates together can move the value by, on images of up to 150,528 numbers, with
# normals as uneven as sixth powers of normal numbers, for planes up to 95 % of the way to the corner.
NEWTON_STEPS = {"linf": 8, "l2": 12}
SEARCH_STEPS, INTERPOLATED = 24, 12
TINY = 1e-12


def way(point: Tensor, normal: Tensor, offset: Tensor, *, norm: Norm) -> Tensor:
    """The move (B,D) from `point` (B,D) in [0,1] to {z: normal.z = offset}; `normal` (B,D), `offset` [B].

    Where the plane does not meet the box, to the corner that is nearest to it in value.
    """
    gap = offset - (normal * point).sum(dim=1)
    direction = normal.sign() * gap.sign()[:, None]
    # 1 - x upwards and x downwards. Arithmetic, here and below: `where` takes many times as long on the cpu.
    reach = torch.addcmul(direction.clamp(min=0.0), direction, point, value=-1.0)
    weight = normal.abs()
    if norm == "l1":
        return direction * reach * _steepest_first(weight, reach, gap.abs())
    # In linf all coordinates go at one pace: a pass over them less in each step.
    gain = weight if norm == "linf" else weight.square()
    goal, settled = gap.abs(), 4.0 * torch.finfo(gap.dtype).eps
    # The first step is made from 0, where nothing has moved and all that has a reach can.
    first = _newton(goal, (gain * reach.sign()).sum(dim=1))
    t = torch.where(first > 0.0, first, 0.0)
    for _ in range(NEWTON_STEPS[norm] - 1):
        wanted = t[:, None] if norm == "linf" else t[:, None] * weight
        value = (weight * torch.minimum(wanted, reach)).sum(dim=1)
        further = _newton(goal - value, (reach - wanted).gt_(0.0).mul_(gain).sum(dim=1))
        moves = further > settled * t
        t = torch.where(moves, t + further, t)
        # What has settled stays, so an early end changes no bit; a look is free on the cpu alone. 4 steps are usual.
        if t.device.type == "cpu" and not bool(moves.any()):
            break
    # 0 * inf: a plane without a normal is nowhere, and the point stays.
    wanted = t[:, None] if norm == "linf" else t[:, None] * weight
    return direction * torch.minimum(wanted, reach)


def _newton(missing: Tensor, slope: Tensor) -> Tensor:
    """The step [B] that makes up for what is missing; 0 where nothing moves any more."""
    return torch.where(slope > 0.0, missing.clamp(min=0.0) / slope.clamp(min=TINY), 0.0)


def _steepest_first(weight: Tensor, reach: Tensor, goal: Tensor) -> Tensor:
    """The part (B,D) of its reach that each coordinate goes, mostly 0 or 1: sum weight * reach * part = goal [B]."""
    gain, tiny = weight * reach, torch.finfo(goal.dtype).tiny
    far, near = weight.amax(dim=1), torch.zeros_like(goal)  # above `far` too few go, above `near` too many
    too_little, too_much = torch.zeros_like(goal), gain.sum(dim=1)
    for number in range(SEARCH_STEPS):
        share = 0.5 * torch.ones_like(goal)
        if number % 2 == 0 and number < INTERPOLATED:
            share = ((too_much - goal) / (too_much - too_little).clamp(min=tiny)).clamp(0.0, 1.0)
        threshold = torch.lerp(near, far, torch.nan_to_num(share, nan=0.5))
        value = _above(weight, threshold).mul_(gain).sum(dim=1)
        is_much = value > goal
        near, far = torch.where(is_much, threshold, near), torch.where(is_much, far, threshold)
        too_much = torch.where(is_much, value, too_much)
        too_little = torch.where(is_much, too_little, value)
    missing = torch.where(goal > 0.0, goal - too_little, 0.0)  # of a goal that is not a number nothing is
    part = (missing / (too_much - too_little).clamp(min=tiny)).clamp(0.0, 1.0)
    return torch.lerp(_above(weight, far), _above(weight, near), part[:, None])


def _above(weight: Tensor, threshold: Tensor) -> Tensor:
    """1 where `weight` (B,D) is above `threshold` [B], else 0."""
    return (weight - threshold[:, None]).sign_().clamp_(min=0.0)
