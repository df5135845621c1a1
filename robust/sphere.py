"""What APGD does with a norm, as in its published code: starts on the sphere, and steps and projections of its own.

The projections of robust/threat.py differ in rounding only; these follow the published order of operations, because a
step-by-step comparison with it is part of the tests.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from robust.lanes import rows
from robust.threat import Noise, normal

TINY = 1e-12


class Sphere(Protocol):
    """image, clean, gradient (B,3,H,W); eps, size [B]; seed int64 [B]."""

    def start(self, clean: Tensor, eps: Tensor, seed: Tensor, noise: Noise) -> Tensor:
        """A random point at distance eps, clipped to the box."""
        ...

    def ascend(self, image: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """The step of length `size`, not projected."""
        ...

    def projection(self, clean: Tensor, eps: Tensor) -> Callable[[Tensor], Tensor]:
        """What brings images (B,3,H,W) into the ball, then into the box."""
        ...


class LinfSphere:
    def start(self, clean: Tensor, eps: Tensor, seed: Tensor, noise: Noise) -> Tensor:
        t = 2.0 * noise(seed, tuple(clean.shape[1:])).to(clean.dtype) - 1.0
        scale = t.abs().flatten(1).amax(dim=1) + TINY
        return (clean + rows(eps, clean) * (t / rows(scale, t))).clamp(0.0, 1.0)

    def ascend(self, image: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        return torch.addcmul(image, gradient.sign(), rows(size, image))

    def projection(self, clean: Tensor, eps: Tensor) -> Callable[[Tensor], Tensor]:
        radius = rows(eps, clean)
        low, high = (clean - radius).clamp(min=0.0), (clean + radius).clamp(max=1.0)
        return lambda image: torch.clamp(image, low, high)


class L2Sphere:
    def start(self, clean: Tensor, eps: Tensor, seed: Tensor, noise: Noise) -> Tensor:
        t = normal(noise(seed, tuple(clean.shape[1:]))).to(clean.dtype)
        return (clean + rows(eps, clean) * (t / (_length(t) + TINY))).clamp(0.0, 1.0)

    def ascend(self, image: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        return image + rows(size, image) * gradient / (_length(gradient) + TINY)

    def projection(self, clean: Tensor, eps: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda image: self._project(image, clean, eps)

    def _project(self, image: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        change = image - clean
        length = _length(change)
        reach = torch.minimum(rows(eps, clean), length)
        return torch.addcmul(clean, change, reach / (length + TINY)).clamp(0.0, 1.0)


def _start_l1(clean: Tensor, eps: Tensor, seed: Tensor, noise: Noise) -> Tensor:
    t = normal(noise(seed, tuple(clean.shape[1:]))).to(clean.dtype)
    return (clean + rows(eps, clean) * (t / rows(t.abs().flatten(1).sum(dim=1) + TINY, t))).clamp(0.0, 1.0)


SPHERES: Mapping[str, Sphere] = {"linf": LinfSphere(), "l2": L2Sphere()}
STARTS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Noise], Tensor]] = {
    "linf": SPHERES["linf"].start,
    "l2": SPHERES["l2"].start,
    "l1": _start_l1,  # of FAB; APGD steps and projects in l1 its own way (robust/apgd_l1.py)
}


def _length(change: Tensor) -> Tensor:
    return change.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
