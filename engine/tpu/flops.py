"""Floating-point operations of a train step, counted from the model alone, to hold the compiler's count against.

The model runs on the meta device, forward and backward, and every matrix product and convolution that torch makes is
counted: two operations for each multiply-add. Adds, activations and norms are left out; they are 1 to 3 % of a step.
Three kinds of pass are told apart, because they cost differently: forward; the attack's backward pass to the image,
which needs no gradient of weights; the full one, which needs none of the first layer's input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from engine.build import check_model
from engine.passes import Passes
from engine.recipe import Recipe
from models.head import train_head_only
from models.pixel import PixelModel

IMAGES = 2  # of the counted batch; one alone is refused by BatchNorm in train mode


class Flops(NamedTuple):
    """Of one image."""

    total: int  # as papers count: a kernel costs the same everywhere
    inside: int  # without kernel places in the padding, as XLA counts

    def times(self, count: int) -> "Flops":
        return Flops(self.total * count, self.inside * count)


class Component(NamedTuple):
    """A kind of pass in a step."""

    name: str
    passes: int
    each: Flops


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """Of one image in one train step."""

    components: tuple[Component, ...]
    missing: str | None  # what could not be counted

    @property
    def total(self) -> int:
        return sum(part.each.total * part.passes for part in self.components)

    @property
    def inside(self) -> int:
        return sum(part.each.inside * part.passes for part in self.components)


def count_flops(recipe: Recipe, passes: Passes, *, num_classes: int | None = None) -> StepFlops:
    """Of a step with these passes; `num_classes` None: those of the recipe, else 1000."""
    model = check_model(recipe, num_classes=num_classes)
    if recipe.model.trainable == "head":
        train_head_only(model)
    size = recipe.data.image_size
    parts = [
        Component("forward", passes.forward, of_forward(model, size)),
        Component("backward to the image", passes.input_only, of_backward(model, size, to="image")),
        Component("full backward", passes.full, _full(recipe, model, size)),
    ]
    teacher, missing = _teacher(recipe, num_classes) if passes.teacher else (None, None)
    if teacher is not None:
        parts.append(Component("teacher's forward", passes.teacher, teacher))
    return StepFlops(components=tuple(part for part in parts if part.passes), missing=missing)


def _full(recipe: Recipe, model: PixelModel, size: int) -> Flops:
    # Free training takes the attack's gradient from the same pass.
    return of_backward(model, size, to="both" if recipe.objective.kind == "free" else "weights")


def _teacher(recipe: Recipe, num_classes: int | None) -> tuple[Flops | None, str | None]:
    distill = recipe.objective.distill
    if distill is None or distill.teacher_model is None:
        return None, "the teacher's forward pass"
    size = distill.teacher_image_size or recipe.data.image_size
    section = recipe.model.model_copy(update={"name": distill.teacher_model, "args": {}, "init": None})
    data = recipe.data.model_copy(update={"image_size": size})
    objective = recipe.objective.model_copy(update={"distill": None})
    lone = recipe.model_copy(update={"model": section, "data": data, "objective": objective})
    return of_forward(check_model(lone, num_classes=num_classes), size), None


def of_forward(model: nn.Module, size: int) -> Flops:
    """Of a forward pass of one image of `size` pixels; `model` is on the meta device."""

    def run() -> None:
        with torch.no_grad():
            model(_images(size))

    return _counted(run)


def of_backward(model: nn.Module, size: int, *, to: str) -> Flops:
    """Of a backward pass: to the "image" alone, to the "weights", or to "both"."""
    image = _images(size).requires_grad_(to != "weights")
    with sdpa_kernel(SDPBackend.MATH):
        value = _sum(model(image))
    wanted = [image] if to == "image" else None
    return _counted(partial(torch.autograd.backward, value, inputs=wanted))


def _images(size: int) -> Tensor:
    return torch.empty(IMAGES, 3, size, size, device="meta")


def _sum(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _counted(run: Callable[[], object]) -> Flops:
    """What `run` costs an image. Attention as its two products: a fused kernel would count its own repetitions."""
    padding = _Padding()
    mapping = {
        torch.ops.aten.convolution: padding.forward,
        torch.ops.aten.convolution_backward: padding.backward,
    }
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    total = int(counter.get_total_flops())
    return Flops(total // IMAGES, (total - padding.flops) // IMAGES)


class _Padding:
    """Counts convolutions as torch does, and what of it falls in their padding."""

    def __init__(self) -> None:
        self.flops = 0

    def forward(
        self,
        x_shape: list[int],
        w_shape: list[int],
        _bias: Any,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        *_: Any,
        out_shape: list[int],
        **__: Any,
    ) -> int:
        """The signature of aten.convolution, shapes for tensors."""
        count = int(conv_flop_count(x_shape, w_shape, out_shape, transposed=transposed))
        self._note(count, x_shape, w_shape, out_shape, (stride, padding, dilation, transposed))
        return count

    def backward(
        self,
        grad_shape: list[int],
        x_shape: list[int],
        w_shape: list[int],
        _bias: Any,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        _output_padding: Any,
        _groups: int,
        output_mask: list[bool],
        out_shape: Any,
    ) -> int:
        """The signature of aten.convolution_backward. Either gradient needs each pair of the forward pass once."""
        each = int(conv_flop_count(x_shape, w_shape, grad_shape, transposed=transposed))
        count = each * sum(output_mask[:2])
        self._note(count, x_shape, w_shape, grad_shape, (stride, padding, dilation, transposed))
        return count

    def _note(
        self,
        count: int,
        x_shape: list[int],
        w_shape: list[int],
        out_shape: list[int],
        window: tuple[list[int], list[int], list[int], bool],
    ) -> None:
        stride, padding, dilation, transposed = window
        if transposed:  # padding takes away outputs there
            return
        columns = zip(x_shape[2:], w_shape[2:], out_shape[2:], stride, padding, dilation, strict=True)
        share = prod(_inside(*column) / (column[1] * column[2]) for column in columns)
        self.flops += round(count * (1.0 - share))


def _inside(size: int, kernel: int, out: int, stride: int, padding: int, dilation: int) -> int:
    """Pairs of an output and a kernel place that meet a pixel, along an axis."""
    places = (step * stride - padding + tap * dilation for step in range(out) for tap in range(kernel))
    return sum(0 <= place < size for place in places)
