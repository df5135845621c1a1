"""Gradients of convolutions and linear layers on XLA, in the precision that was asked for.

torch_xla 2.9 gives `highest` precision to forward convolutions only: on a TPU a float32 run would make their gradients
in bf16 passes. Here those of float32 are forward convolutions themselves. And under bf16 autocast the gradient of a
weight leaves its product rounded to bf16, so that devices sum what is rounded; where the sum is to be float32, the
product gets the same bf16 numbers and gives float32, which the compiler then reduces over devices.

Replaces the autograd kernels of aten::convolution and aten::linear for XLA tensors, in the whole process.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torch_xla
from torch import Tensor
from torch.autograd import Function
from torch.library import Library

from bits.xla_grouped import Grouped, convolve, is_gathered
from bits.xla_grouped import weight_gradient as grouped_weight_gradient

aten = torch.ops.aten
FULL = torch.float32
_library: Library | None = None  # kernels stay as long as it does
_reduces_in_full = True


def install(*, reduce_float32: bool) -> None:
    """For all XLA tensors of this process from now on; a second call changes `reduce_float32` alone."""
    global _library, _reduces_in_full
    _reduces_in_full = reduce_float32
    if _library is None:
        _library = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        _library.impl("convolution", _convolution, "AutogradXLA")  # type: ignore[no-untyped-call]
        _library.impl("linear", _linear, "AutogradXLA")  # type: ignore[no-untyped-call]


def _convolution(*arguments: Any) -> Tensor:
    result: Tensor = _Convolution.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def _linear(image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = _Linear.apply(image, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _Convolution(Function):
    """aten::convolution. Other than two dimensions, and transposed ones, keep torch_xla's gradients; so do the weights
    of grouped ones on one device, whose samples would have to change places with groups."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.how, ctx.grouped = how, _grouped(image, weight, how)
        with torch._C._AutoDispatchBelowAutograd():
            if ctx.grouped is not None:
                divided = convolve(image, weight, ctx.grouped)
                return divided if bias is None else divided + bias[:, None, None]
            result: Tensor = aten.convolution(image, weight, bias, *how)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        stride, padding, dilation, is_transposed, _, groups = ctx.how
        wants_image, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_bias = _sum(gradient, over=(0, *range(2, gradient.dim()))) if wants_bias else None
        if ctx.grouped is not None:
            settings = (tuple(stride), tuple(padding), tuple(dilation), groups)
            of_image = image_gradient(gradient, weight, image.shape, *settings) if wants_image else None
            of_weight = None
            if wants_weight:
                in_full = _reduces_in_full
                of_weight = grouped_weight_gradient(gradient, image, ctx.grouped, in_full=in_full)
        elif image.dtype == FULL and image.dim() == 4 and not is_transposed:
            settings = (tuple(stride), tuple(padding), tuple(dilation), groups)
            of_image = image_gradient(gradient, weight, image.shape, *settings) if wants_image else None
            of_weight = None
            if wants_weight and groups == 1:
                of_weight = weight_gradient(gradient, image, weight.shape, *settings[:3])
            elif wants_weight:
                of_weight = _native(gradient, image, weight, ctx.how, 1)
        else:
            of_image = _native(gradient, image, weight, ctx.how, 0) if wants_image else None
            given = (gradient, image, weight)
            if _reduces_in_full:
                given = (gradient.float(), image.float(), weight.float())
            of_weight = _native(*given, ctx.how, 1) if wants_weight else None
        return of_image, of_weight, of_bias, *[None] * len(ctx.how)


def _grouped(image: Tensor, weight: Tensor, how: tuple[Any, ...]) -> Grouped | None:
    """Of one that several devices would gather."""
    stride, padding, dilation, is_transposed, _, groups = how
    if not is_gathered(image, weight, is_transposed=is_transposed, groups=groups):
        return None
    return Grouped(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)


def _native(gradient: Tensor, image: Tensor, weight: Tensor, how: tuple[Any, ...], place: int) -> Tensor:
    mask = [place == 0, place == 1, False]
    result: Tensor = aten.convolution_backward(gradient, image, weight, None, *how, mask)[place]
    return result


def _sum(gradient: Tensor, *, over: tuple[int, ...]) -> Tensor:
    return gradient.sum(over, dtype=FULL if _reduces_in_full else None)


Pair = tuple[int, ...]


def weight_gradient(
    gradient: Tensor, image: Tensor, shape: torch.Size, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Of a weight of `shape` (O,I,h,w): `image` (N,I,H,W) convolved with `gradient` (N,O,H',W'), samples as
    channels."""
    borders: list[int] = []
    for axis in (1, 0):  # width first, as F.pad wants them
        size, reach = image.shape[2 + axis], dilation[axis] * (shape[2 + axis] - 1)
        # Pixels at the far end that a stride leaves out would make a larger kernel.
        unused = (size + 2 * padding[axis] - reach - 1) % stride[axis]
        borders += [padding[axis], padding[axis] - unused]
    pixels = F.pad(image, borders).transpose(0, 1)
    return F.conv2d(pixels, gradient.transpose(0, 1), None, dilation, 0, stride).transpose(0, 1)


def image_gradient(
    gradient: Tensor,
    weight: Tensor,
    shape: torch.Size,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Of an image of `shape` (N,groups*I,H,W): `gradient` spread by the stride and convolved with the weight turned
    around, (groups*O,I,h,w)."""
    num_in, kernel = weight.shape[1], weight.shape[2:]
    if groups == 1 and kernel == stride and max(padding) == 0 and max(dilation) == 1:
        return _of_patches(gradient, weight, shape)
    turned = weight.reshape(groups, -1, num_in, *kernel).transpose(1, 2).flip(3, 4)
    spread = _spread(gradient, stride)
    borders: list[int] = []
    for axis in (1, 0):  # width first, as F.pad wants them
        reach = dilation[axis] * (kernel[axis] - 1)
        before = reach - padding[axis]
        borders += [before, shape[2 + axis] + reach - before - spread.shape[2 + axis]]
    return F.conv2d(
        F.pad(spread, borders), turned.reshape(groups * num_in, -1, *kernel), None, 1, 0, dilation, groups
    )


def _of_patches(gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Where patches lie side by side each pixel is in one of them or, at the far end, in none: a matrix product, where
    a convolution would go over 256 zeros for each number of a 16 x 16 patch."""
    num, num_out, height, width = gradient.shape
    _, channels, *size = weight.shape
    pixels = gradient.permute(0, 2, 3, 1) @ weight.reshape(num_out, -1)
    patches = pixels.reshape(num, height, width, channels, *size).permute(0, 3, 1, 4, 2, 5)
    image = patches.reshape(num, channels, height * size[0], width * size[1])
    return F.pad(image, (0, shape[3] - image.shape[3], 0, shape[2] - image.shape[2]))


def _spread(gradient: Tensor, stride: Pair) -> Tensor:
    """stride - 1 zeros behind each pixel, along both axes."""
    if max(stride) == 1:
        return gradient
    num, channels, height, width = gradient.shape
    apart = gradient.reshape(num, channels, height, 1, width, 1)
    apart = F.pad(apart, (0, stride[1] - 1, 0, 0, 0, stride[0] - 1))
    return apart.reshape(num, channels, height * stride[0], width * stride[1])


class _Linear(Function):
    """aten::linear: image (...,I), weight (O,I), bias (O,)."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(image, weight)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = aten.linear(image, weight, bias)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        wants_image, wants_weight, wants_bias = ctx.needs_input_grad
        of_image = gradient @ weight if wants_image else None
        of_bias = _sum(gradient, over=tuple(range(gradient.dim() - 1))) if wants_bias else None
        if not wants_weight:
            return of_image, None, of_bias
        is_plain = image.dtype == FULL or not _reduces_in_full
        product = _rounded_product if is_plain else _product
        return of_image, product(gradient, image), of_bias


def _rounded_product(errors: Tensor, rows: Tensor) -> Tensor:
    """(O,I), sum over all axes but the last of errors (...,O) times rows (...,I), in their dtype."""
    return errors.reshape(-1, errors.shape[-1]).t() @ rows.reshape(-1, rows.shape[-1])


def _product(errors: Tensor, rows: Tensor) -> Tensor:
    """The same sum of bf16 numbers as float32: one bf16 pass on a TPU, exact for them, where a product of float32
    numbers would take six. No axes are joined first: 64 x 197 rows do not lie in a TPU's tiles as 12608 do, and
    copying them there was a tenth of all bytes that a ViT's step moved."""
    axes = list(range(errors.dim() - 1))
    product: Tensor = torch_xla._XLAC._xla_dot_general(
        errors, rows, ((axes, axes), ([], [])), preferred_element_type=FULL
    )
    return product
