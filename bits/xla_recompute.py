"""Gradient checkpointing on XLA: a module's inner tensors are made again in the backward pass.

torch's own raises there (it looks for a `torch.xla`), and torch_xla's refuses `backward(inputs=...)`, with which an
attack differentiates the image alone. Two things are particular to a compiler. It would see two equal
computations and make them one, so what goes into the second passes an optimization barrier; and the incoming
gradient passes the same one, so that the second cannot be scheduled before it is needed.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch_xla.core.xla_model as xla_model
from torch import Tensor, nn

from bits.xla_generator import replayed, standing


def recompute(module: nn.Module, *inputs: Tensor) -> Tensor:
    """`module(*inputs)`, a tensor. The second run draws the numbers of the first, under the autocast of the first."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    out: Tensor = _Recompute.apply(module, len(inputs), *inputs, *parameters)  # type: ignore[no-untyped-call]
    return out


class _Recompute(torch.autograd.Function):
    # The parameters are arguments so that the engine knows of them: it then adds their gradients, or leaves them out
    # where only others were asked for.

    @staticmethod
    def forward(ctx: Any, module: nn.Module, count: int, *tensors: Tensor) -> Tensor:
        seed = standing()
        out: Tensor = module(*tensors[:count])
        ctx.module, ctx.count = module, count
        # None where nothing was drawn: a seed that is set is one more transfer to the device in every step.
        ctx.seed = None if standing() == seed else seed
        ctx.is_autocast = torch.is_autocast_enabled("xla")
        ctx.dtype = torch.get_autocast_dtype("xla")
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        tensors, count, wanted = ctx.saved_tensors, ctx.count, ctx.needs_input_grad[2:]
        # Copies, because the barrier works in place, and an activation may have other uses.
        held = [tensor.detach().clone() for tensor in (*tensors[:count], *gradients)]
        xla_model.optimization_barrier_(held)
        inputs = [
            tensor.requires_grad_(is_wanted)
            for tensor, is_wanted in zip(held[:count], wanted[:count], strict=True)
        ]
        sources = [t for t, is_wanted in zip((*inputs, *tensors[count:]), wanted, strict=True) if is_wanted]
        found = iter(torch.autograd.grad(_again(ctx, inputs), sources, held[count], allow_unused=True))
        return (None, None, *(next(found) if is_wanted else None for is_wanted in wanted))


def _again(ctx: Any, inputs: list[Tensor]) -> Tensor:
    autocast = torch.autocast("xla", dtype=ctx.dtype, enabled=ctx.is_autocast)
    with torch.set_grad_enabled(True), autocast, nullcontext() if ctx.seed is None else replayed(ctx.seed):
        out: Tensor = ctx.module(*inputs)
    return out
