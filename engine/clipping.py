"""Gradients made smaller before an update: on the device, with no host read and the same graph every time."""

import torch
from torch import Tensor, nn

from bits.environment import Clip
from engine.fields import OptimSection
from models.head import classifiers

AGC_EPS = 1e-3  # the weights' norm counts as at least this


def clip_of(optim: OptimSection) -> Clip | None:
    """What a recipe asks for; None where gradients stay as they are."""
    if (limit := optim.clip_norm) is not None:
        return lambda model: clip_by_norm(model, limit)
    if (factor := optim.clip_agc) is not None:
        return lambda model: clip_adaptively(model, factor)
    return None


def clip_by_norm(model: nn.Module, limit: float) -> None:
    """One factor for all gradients, so that their joint norm is at most `limit`."""
    nn.utils.clip_grad_norm_(model.parameters(), limit)


@torch.no_grad()
def clip_adaptively(model: nn.Module, factor: float) -> None:
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171): the gradient of each unit (the weights of one
    output) is at most `factor` times as long as the unit's weights; timm's `adaptive_clip_grad` with eps 0.001.

    The classifier is left out, as in the paper. timm leaves out the last two parameters, whichever they are.
    """
    left_out = {id(p) for head in classifiers(model) for p in head.parameters()}
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is None or id(parameter) in left_out:
            continue
        longest = _unit_norm(parameter).clamp(min=AGC_EPS) * factor
        length = _unit_norm(gradient)
        clipped = gradient * (longest / length.clamp(min=1e-6))
        gradient.copy_(torch.where(length < longest, gradient, clipped))


def _unit_norm(tensor: Tensor) -> Tensor:
    """Of each row; of the whole where there are no rows."""
    dim = tuple(range(1, tensor.ndim)) or None
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=dim, keepdim=tensor.ndim > 1)
    return norm
