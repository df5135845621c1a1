"""Losses of adversarial training, pure functions of logits: one number for each sample, float32 at least.

Everything is taken from log-softmax, so that a saturated model gives large numbers and not infinity or NaN, in the
value and in the gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Parts(NamedTuple):
    """A loss and what it is made of, each (N,)."""

    loss: Tensor
    fit: Tensor  # the part that fits the label
    divergence: Tensor  # KL of the prediction on attacked images from that on clean ones


def kl_divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(p || softmax(logits)) = sum_c p_c (log p_c - log softmax(logits)_c): (N,K) and (N,K) -> (N,).

    As the loss of an attack it has the gradient of cross-entropy with the soft target p. `probabilities` must be a
    constant: the gradient with respect to a p_c of 0 is infinite, and softmax in float32 makes such.
    """
    wide = _wide(logits)
    constant = probabilities.detach().to(wide.dtype)
    entropy: Tensor = torch.special.xlogy(constant, constant).sum(dim=1)
    return entropy - (constant * F.log_softmax(wide, dim=1)).sum(dim=1)


def trades(clean: Tensor, attacked: Tensor, target: Tensor, *, beta: float) -> Parts:
    """CE(clean, target) + beta * KL(p || q), p = softmax(clean), q = softmax(attacked) (Zhang et al. 2019,
    arXiv:1901.08573, eq. 5 with cross-entropy).

    `clean` and `attacked` are logits (N,K) of the same images, `target` soft (N,K). As in the published code the
    gradient passes through p too.
    """
    fit = -(target * F.log_softmax(_wide(clean), dim=1)).sum(dim=1)
    divergence = _divergence(clean, attacked)
    return Parts(loss=fit + beta * divergence, fit=fit, divergence=divergence)


def mart(clean: Tensor, attacked: Tensor, label: Tensor, *, beta: float) -> Parts:
    """BCE(q, y) + beta * (1 - p_y) * KL(p || q), with p = softmax(clean), q = softmax(attacked) and the boosted
    cross-entropy BCE(q, y) = -log q_y - log(1 - max_{c != y} q_c).

    Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples" (ICLR); their
    lambda is `beta`. Logits (N,K), label int64 [N]. Deviation from the published code: no 1e-12 and 1.0001 inside the
    logarithms, which bend the loss where a model is sure; log(1 - q_c) is the log-sum-exp of the other classes.
    """
    logits = _wide(attacked)
    log_q = F.log_softmax(logits, dim=1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_label = label[:, None] == classes
    lowest = torch.finfo(logits.dtype).min
    rival = log_q.detach().masked_fill(is_label, lowest).argmax(dim=1)
    is_rival = rival[:, None] == classes
    log_one_minus = torch.logsumexp(log_q.masked_fill(is_rival, lowest), dim=1)
    fit = -torch.where(is_label, log_q, 0.0).sum(dim=1) - log_one_minus
    divergence = _divergence(clean, attacked)
    p_label = torch.where(is_label, F.softmax(_wide(clean), dim=1), 0.0).sum(dim=1)
    return Parts(loss=fit + beta * (1.0 - p_label) * divergence, fit=fit, divergence=divergence)


def _divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(attacked)), differentiable in both."""
    log_p, log_q = (F.log_softmax(_wide(logits), dim=1) for logits in (clean, attacked))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
