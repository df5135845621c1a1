"""What an attacker may do to an image: a ball around the clean image, cut by the pixel range [0, 1].

A threat model is four small methods, so an attack is written once for all of them. All are elementwise or
reduce over one image, of static shape, and run on any backend. Radii are in pixel units (eps 4/255 is 4/255
for every model); those of l2 are Euclidean lengths over all pixels and channels of an image (0.5, 3.0).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

Noise = Callable[[Tensor, tuple[int, ...]], Tensor]
"""noise(seed int64[N], shape) -> float32 [N,*shape] in [0, 1), a pure function of each image's seed."""

RADIUS_STREAM = 0x726164697573  # "radius": keeps the start's distance apart from its direction


class ThreatModel(Protocol):
    """image, clean, gradient: (N,3,H,W) float; eps, size: 0-dim or [N] (one per image); seed: int64 [N]."""

    def project(self, image: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        """A point near `image` inside the eps-ball around `clean` and inside [0, 1]; one that is there stays."""
        ...

    def step(self, image: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """Move `image` by a step of length `size` (in this norm) that raises the loss most; not projected."""
        ...

    def random_start(self, clean: Tensor, eps: Tensor, noise: Noise, seed: Tensor) -> Tensor:
        """A random point of the ball, inside [0, 1], a function of each image's seed."""
        ...

    def widest(self, shape: Sequence[int]) -> float:
        """Largest distance of two images of `shape` (3,H,W): a radius above it forbids nothing."""
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

    def random_start(self, clean: Tensor, eps: Tensor, noise: Noise, seed: Tensor) -> Tensor:
        """Uniform in the eps-ball, then clipped to [0, 1]: PGD's usual start."""
        uniform = noise(seed, tuple(clean.shape[1:]))
        return (clean + per_image(eps, clean) * (2.0 * uniform - 1.0)).clamp(0.0, 1.0)

    def widest(self, shape: Sequence[int]) -> float:
        return 1.0


class L2:
    """||image - clean||_2 <= eps over all pixels and channels of an image (Madry et al. 2018, appendix).

    Lengths are taken in float32 at least. A bf16 or fp16 image is rounded to its own dtype after the last
    operation, and that rounding may leave the ball.
    """

    def project(self, image: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        """`image` (N,3,H,W) drawn towards `clean` into the eps-ball, then clamped to [0, 1].

        Not the nearest point of the intersection, which has no closed form, but what Madry et al., foolbox and
        torchattacks do. It is inside both: `clean` lies in [0, 1], so clamping brings every pixel nearer to its
        clean value or leaves it. The price is small: on a linear model with every clean pixel at the border of the
        box, PGD reached 98 % of the loss that is possible. Rounding may exceed eps by 1e-6 of it and half a unit
        in the last place of each pixel (3e-8 * sqrt(3*H*W)).
        """
        change = _wide(image) - _wide(clean)
        # At length zero the quotient is huge or infinite, and clamps to 1; 0 / 0 cannot occur.
        shrink = (per_image(eps, clean) / _length(change).clamp(min=1e-30)).clamp(max=1.0)
        return (_wide(clean) + shrink * change).clamp(0.0, 1.0).to(image.dtype)

    def step(self, image: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """image + size * gradient / ||gradient||_2; an image whose gradient is zero stays.

        Scaled by its largest entry first: squares of 1e-20 would be zero in float32, and saturated models have
        such gradients. NaN counts as zero, an overflow as the largest number.
        """
        finite = torch.nan_to_num(_wide(gradient), nan=0.0)
        largest = finite.abs().amax(dim=_inner(finite), keepdim=True)
        scaled = finite / largest.clamp(min=torch.finfo(finite.dtype).tiny)
        direction = scaled / _length(scaled).clamp(min=1.0)  # >= 1 where the gradient is not zero
        return (_wide(image) + per_image(size, image) * direction).to(image.dtype)

    def random_start(self, clean: Tensor, eps: Tensor, noise: Noise, seed: Tensor) -> Tensor:
        """Uniform in the eps-ball, then clipped to [0, 1].

        A direction of d = 3*H*W normal numbers, at the distance eps * u**(1/d) with u uniform from a stream of its
        own. In many dimensions nearly all of a ball is near its surface, and so are these points.
        """
        shape = tuple(clean.shape[1:])
        direction = normal(noise(seed, shape))
        distance = noise(seed ^ RADIUS_STREAM, (1,)).flatten() ** (1.0 / math.prod(shape))
        change = per_image(distance, clean) * direction / _length(direction)
        return (_wide(clean) + per_image(eps, clean) * change).clamp(0.0, 1.0).to(clean.dtype)

    def widest(self, shape: Sequence[int]) -> float:
        return math.sqrt(math.prod(shape))


THREATS: Mapping[str, ThreatModel] = {"linf": Linf(), "l2": L2()}
NORMS = (*THREATS, "l1")  # of the attacks that bring their own steps and projections: APGD, FAB, Square


def distance(image: Tensor, clean: Tensor, norm: str) -> Tensor:
    """Length [N] of image - clean, (N,3,H,W) both, in the norm called `norm`: linf, l2 or l1."""
    change = (_wide(image) - _wide(clean)).flatten(1)
    if norm == "l1":
        return change.abs().sum(dim=1)
    return change.abs().amax(dim=1) if norm == "linf" else change.square().sum(dim=1).sqrt()


def slack(norm: str, eps: float, shape: Sequence[int]) -> float:
    """How far rounding may carry a projected float32 image of `shape` (3,H,W) out of the ball, and a little more."""
    if norm == "l1":
        return 2e-6 * eps + 6e-8 * math.prod(shape)
    return 1e-6 if norm == "linf" else 2e-6 * eps + 6e-8 * math.sqrt(math.prod(shape))


def widest(norm: str, shape: Sequence[int]) -> float:
    """Largest distance of two images of `shape` (3,H,W) in a norm: a radius above it forbids nothing."""
    return float(math.prod(shape)) if norm == "l1" else THREATS[norm].widest(shape)


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from float32 uniform ones in [0, 1), by the inverse distribution function.

    Uniform numbers are multiples of 2**-24; they are moved by half of that, which makes them symmetric around
    1/2 and keeps 0 finite: the result lies within 5.5 of 0. The sum below is exact in float32.
    """
    return math.sqrt(2.0) * torch.erfinv((2.0 * uniform - 1.0) + 2.0**-24)


def per_image(value: Tensor | float, image: Tensor) -> Tensor | float:
    """`value` (a number, 0-dim or [N]) ready to broadcast over `image` (N,...)."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.view([-1] + [1] * (image.dim() - 1))
    return value


def _wide(image: Tensor) -> Tensor:
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _inner(image: Tensor) -> tuple[int, ...]:
    return tuple(range(1, image.dim()))


def _length(change: Tensor) -> Tensor:
    """l2 norm of each image, (N,1,1,1)."""
    return change.square().sum(dim=_inner(change), keepdim=True).sqrt()
