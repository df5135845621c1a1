"""Losses that attacks ascend: (logits (N,K), label int64 [N], target int64 [N]) -> one number per image, [N].

float32 at least. Target is the class to reach; losses without one leave it alone.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["ce", "dlr", "dlr-targeted", "margin", "margin-targeted", "probability-margin"]
AttackLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
FLOOR = 1e-12  # of the denominators, as published


def cross_entropy(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """-log softmax(z)_y. In float32 it and its gradient are zero where the model is sure (z_y ahead by 104)."""
    return F.cross_entropy(_wide(logits), label, reduction="none")


def dlr(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), z_(1) the largest (Croce and Hein
    2020, arXiv:2003.01690, eq. 6). Scaling or shifting the logits changes nothing. Needs 3 classes.
    """
    z = _wide(logits)
    ordered = torch.topk(z, 3, dim=1)
    top = ordered.values
    # By place, not by value: of two equal largest logits the rival is the other one.
    rival = torch.where(ordered.indices[:, 0] == label, top[:, 1], top[:, 0])
    return -(_at(z, label) - rival) / (top[:, 0] - top[:, 2] + FLOOR)


def dlr_targeted(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) (same paper, eq. 7). Needs 4 classes."""
    z = _wide(logits)
    top = torch.topk(z, 4, dim=1).values
    return -(_at(z, label) - _at(z, target)) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + FLOOR)


def margin(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y: DLR without its denominator, for models of 2 classes, which have no third logit."""
    z = _wide(logits)
    is_label = torch.arange(z.shape[1], device=z.device) == label[:, None]
    return torch.where(is_label, -torch.inf, z).amax(dim=1) - _at(z, label)


def margin_targeted(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y: targeted DLR without its denominator, for models of 2 or 3 classes, which have no fourth logit."""
    z = _wide(logits)
    return _at(z, target) - _at(z, label)


def probability_margin(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """max_{i != y} p_i - p_y with p = softmax(z): the loss of PMA (Xie et al. 2024, arXiv:2411.15210).

    In float32 it is -1 where the model is sure (z_y ahead by 17); its gradient lives on until the rival's p is zero.
    """
    return margin(torch.softmax(_wide(logits), dim=1), label, target)


LOSSES: Mapping[LossName, AttackLoss] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
    "margin": margin,
    "margin-targeted": margin_targeted,
    "probability-margin": probability_margin,
}
LEAST_CLASSES: Mapping[LossName, int] = {
    "ce": 2,
    "dlr": 3,
    "dlr-targeted": 4,
    "margin": 2,
    "margin-targeted": 2,
    "probability-margin": 2,
}
WITHOUT_RATIO: Mapping[LossName, LossName] = {"dlr": "margin", "dlr-targeted": "margin-targeted"}
"""What takes the place of a loss that a model has too few classes for."""


def _at(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index[:, None])[:, 0]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
