"""BPDA: a step of a model that has no useful gradient, with the gradient of a stand-in (Athalye et al. 2018,
arXiv:1802.00420, section 4.1).

Quantising, JPEG, thresholds: the answer is that of the step itself, bit for bit, and the backward pass goes through
something smooth that is close to it. Without such a stand-in an attack by gradients is blind to a defence that a person
who knows it would walk around, and the robust accuracy is too high.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]


def bpda(forward: Step, backward: Step | None = None) -> nn.Module:
    """A module: `forward`'s values with `backward`'s gradient, that of the identity (straight through) by default.

        model = nn.Sequential(robust.bpda(lambda image: (image * 15).round() / 15), classifier).eval()
        robust.autoattack(model, image, label, eps=8 / 255)

    Both map tensors to tensors of one shape; modules that are given become part of the module.
    """
    return Bpda(forward, backward)


class Bpda(nn.Module):
    """See `bpda`."""

    def __init__(self, forward: Step, backward: Step | None) -> None:
        super().__init__()
        self._values, self._gradient = forward, backward

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            value = self._values(image)
        if not torch.is_grad_enabled():
            return value
        stand_in = image if self._gradient is None else self._gradient(image)
        if stand_in.shape != value.shape:
            raise ValueError(
                f"BPDA's backward step gives {tuple(stand_in.shape)} where the forward step gives "
                f"{tuple(value.shape)}; they must be alike"
            )
        result: Tensor = _Instead.apply(value, stand_in)  # type: ignore[no-untyped-call]
        return result


class _Instead(torch.autograd.Function):
    """The first argument's values, the second one's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
