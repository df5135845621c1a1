"""Convolutions in groups over several XLA devices, as a matrix product for each place of the kernel.

XLA's partitioner divides a convolution over the samples where it has one group, or as many as channels; of any other it
gathers all samples on every device first, forward and backward (seen with torch_xla 2.9 behind its pass
spmd-partitioner, which is the same for a TPU). Products it divides. One device keeps the convolution.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torch_xla
import torch_xla.runtime as runtime
from torch import Tensor

FULL = torch.float32
Pair = tuple[int, ...]


class Grouped(NamedTuple):
    """How it goes over an image; pairs are (along H, along W)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def size(self, image: Tensor) -> Pair:
        """(H',W') of the result."""
        return tuple(
            (image.shape[2 + a] + 2 * self.padding[a] - self.dilation[a] * (self.kernel[a] - 1) - 1)
            // self.stride[a]
            + 1
            for a in (0, 1)
        )

    def windows(self, image: Tensor) -> Iterator[Tensor]:
        """(N,G,I,H',W') for each place of the kernel, row by row: what that place meets of `image` (N,G*I,H,W)."""
        height, width = self.size(image)
        (down, right), (above, before) = self.stride, self.padding
        pixels = _by_group(F.pad(image, (before, before, above, above)), self.groups)
        for y in range(0, self.kernel[0] * self.dilation[0], self.dilation[0]):
            rows = pixels[:, :, :, y : y + down * (height - 1) + 1 : down]
            for x in range(0, self.kernel[1] * self.dilation[1], self.dilation[1]):
                yield rows[..., x : x + right * (width - 1) + 1 : right]


def is_gathered(image: Tensor, weight: Tensor, *, is_transposed: bool, groups: int) -> bool:
    """Whether the partitioner would gather all samples of this convolution."""
    return groups > 1 and weight.shape[1] > 1 and image.dim() == 4 and not is_transposed and runtime.is_spmd()


def convolve(image: Tensor, weight: Tensor, how: Grouped) -> Tensor:
    """(N,G*O,H',W') of `image` (N,G*I,H,W) and `weight` (G*O,I,h,w), in the image's dtype; sums are float32."""
    places = weight.reshape(how.groups, -1, weight.shape[1], how.kernel[0] * how.kernel[1]).unbind(
        3
    )  # (G,O,I) each
    total: Tensor | None = None
    for window, place in zip(how.windows(image), places, strict=True):
        product = _forward(window, place)
        total = product if total is None else total + product
    assert total is not None, "a kernel without places"
    return total.permute(1, 0, 4, 2, 3).flatten(1, 2).to(image.dtype)


def weight_gradient(gradient: Tensor, image: Tensor, how: Grouped, *, in_full: bool) -> Tensor:
    """(G*O,I,h,w) of the gradient (N,G*O,H',W') and `image` (N,G*I,H,W). `in_full`: devices sum float32, whatever the
    dtype of these."""
    errors = _by_group(gradient, how.groups)
    places = [_backward(errors, window, in_full=in_full) for window in how.windows(image)]
    return torch.stack(places, dim=-1).reshape(gradient.shape[1], -1, *how.kernel)


def _forward(window: Tensor, place: Tensor) -> Tensor:
    """(G,N,H,W,O), sum over I of (N,G,I,H,W) times (G,O,I)."""
    if window.dtype != FULL:
        return _product(window, place, ([2], [2]), ([1], [0]))
    rows = window.permute(1, 0, 3, 4, 2)
    return (rows.flatten(1, 3) @ place.transpose(1, 2)).reshape(*rows.shape[:4], -1)


def _backward(errors: Tensor, window: Tensor, *, in_full: bool) -> Tensor:
    """(G,O,I), sum over samples and pixels of (N,G,O,H,W) times (N,G,I,H,W)."""
    if errors.dtype != FULL and in_full:
        return _product(errors, window, ([0, 3, 4], [0, 3, 4]), ([1], [1]))
    return errors.permute(1, 2, 0, 3, 4).flatten(2) @ window.permute(1, 0, 3, 4, 2).flatten(1, 3)


def _by_group(image: Tensor, groups: int) -> Tensor:
    """(N,G,C,H,W) of (N,G*C,H,W)."""
    return image.reshape(len(image), groups, -1, *image.shape[2:])


Axes = tuple[list[int], list[int]]


def _product(left: Tensor, right: Tensor, summed: Axes, paired: Axes) -> Tensor:
    """float32 of numbers in bf16, which a matmul would round to bf16. Made float32 first, as XLA:CPU has no such
    product of batches; on a TPU it is one bf16 pass all the same, exact for them, since torch_xla gives this call no
    precision. Hence not for float32 numbers."""
    product: Tensor = torch_xla._XLAC._xla_dot_general(
        left.float(), right.float(), (summed, paired), preferred_element_type=FULL
    )
    return product
