"""What an attacker may do to an image: a ball around the clean image, cut by the pixel range [0, 1].

A threat model is three small methods, so an attack is written once for all of them. All are elementwise or
reduce over one image, of static shape, and run on any backend. Radii are in pixel units (eps 4/255 is 4/255
for every model).
"""

from typing import Protocol

import torch
from torch import Tensor


class ThreatModel(Protocol):
    """image, clean, gradient, noise: (N,3,H,W) float; eps, size: 0-dim or [N] (one per image)."""

    def project(self, image: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        """Nearest point to `image` inside the eps-ball around `clean` and inside [0, 1]."""
        ...

    def step(self, image: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """Move `image` by a step of length `size` (in this norm) that raises the loss most; not projected."""
        ...

    def random_start(self, clean: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        """A random point of the ball, inside [0, 1], made from `noise` (N,3,H,W) in [0, 1)."""
        ...


class Linf:
    """|image - clean| <= eps at every pixel and channel (Madry et al. 2018, arXiv:1706.06083)."""

    def project(self, image: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        """Nearest point to `image` (N,3,H,W) inside the eps-ball around `clean` and inside [0, 1].

        Ball and box are both boxes, so clamping to their intersection is the exact projection. The bounds are
        rounded float32 numbers: |image - clean| may exceed eps by one unit in the last place (6e-8).
        """
        radius = per_image(eps, clean)
        return torch.clamp(image, (clean - radius).clamp(min=0.0), (clean + radius).clamp(max=1.0))

    def step(self, image: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """image + size * sign(gradient); a pixel whose gradient is zero stays."""
        return image + per_image(size, image) * gradient.sign()

    def random_start(self, clean: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        """Uniform in the eps-ball, then clipped to [0, 1]: PGD's usual start."""
        return (clean + per_image(eps, clean) * (2.0 * noise - 1.0)).clamp(0.0, 1.0)


def per_image(value: Tensor | float, image: Tensor) -> Tensor | float:
    """`value` (a number, 0-dim or [N]) ready to broadcast over `image` (N,...)."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.view([-1] + [1] * (image.dim() - 1))
    return value
