"""A model in low precision for a search, never for a verdict: quick logits and gradients that say where to look.

Normalisation and the first layer stay float32: a bf16 number in [0.5, 1) is a multiple of 1/256, so that an image
rounded to bf16 loses most of a perturbation of 4/255.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robust.gradient import Predict

Autocast = Callable[[], AbstractContextManager[object]]
SCALE = 1024.0  # of the gradients inside: fp16 has no numbers below 6e-8
STEMS = (torch.conv2d, F.conv2d, torch.matmul, F.linear)


def low_precision(predict: Predict, autocast: Autocast) -> Predict:
    """`predict` under `autocast()` but for its first layer; logits come out float32.

    Gradients are scaled up at the logits and back at the image, where what is not a number becomes zero.
    """

    def cheap(image: Tensor) -> Tensor:
        with autocast(), _Float32Stem():
            logits = predict(_Scaled.apply(image, 1.0 / SCALE))  # type: ignore[no-untyped-call]
        scaled: Tensor = _Scaled.apply(logits.float(), SCALE)  # type: ignore[no-untyped-call]
        return scaled

    return cheap


class _Float32Stem(TorchFunctionMode):
    """While active, the first convolution or matrix product is computed outside autocast, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self._is_done = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if self._is_done or func not in STEMS:
            return func(*args, **kwargs)
        self._is_done = True
        image = next(arg for arg in args if isinstance(arg, Tensor))
        with torch.autocast(image.device.type, enabled=False):
            return func(*args, **kwargs)


class _Scaled(torch.autograd.Function):
    """The identity, with a gradient times `factor`, finite."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        factor: float = ctx.factor  # type: ignore[attr-defined]
        return torch.nan_to_num(gradient * factor, nan=0.0), None
