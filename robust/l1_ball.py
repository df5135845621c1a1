"""The l1 ball and the box [0, 1] together: the change of an image that is nearest to a wanted one.

Every coordinate's change shrinks by one number, to 0 at most, and ends at its wall (Croce and Hein 2021,
arXiv:2103.01208). The length falls with that number and is piecewise linear in it, so the number is bisected and then
interpolated: 42 passes over the coordinates of one shape, where the published code sorts twice as many numbers as there
are coordinates. Newton's method takes fewer where changes are even and many more where a few are far longer than the
rest.
"""

import torch
from torch import Tensor

HALVINGS = 40
TINY = 1e-10


def projected(change: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    """The change nearest to `change` (B,3,H,W) of l1 length eps [B] or less that keeps clean + change in [0, 1]."""
    wanted, sign = change.abs().flatten(1), change.sign().flatten(1)
    flat = clean.flatten(1)
    room = torch.where(sign > 0, 1.0 - flat, flat)

    def lengths(shrink: Tensor) -> Tensor:
        return _shrunk(wanted, room, shrink).sum(dim=1)

    near, far = torch.zeros_like(eps), wanted.amax(dim=1)
    is_within = lengths(near) <= eps
    for _ in range(HALVINGS):
        middle = (near + far) / 2.0
        is_long = lengths(middle) > eps
        near, far = torch.where(is_long, middle, near), torch.where(is_long, far, middle)
    long, short = lengths(near), lengths(far)
    share = ((long - eps) / (long - short).clamp(min=TINY)).clamp(0.0, 1.0)
    shrink = torch.where(is_within, 0.0, near + share * (far - near))
    return (sign * _shrunk(wanted, room, shrink)).view_as(change)


def _shrunk(wanted: Tensor, room: Tensor, shrink: Tensor) -> Tensor:
    left = (wanted - shrink[:, None]).clamp_(min=0.0)
    return torch.minimum(left, room)
