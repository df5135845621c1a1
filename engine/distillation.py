"""Distillation: (1 - alpha) * the objective's loss + alpha * a loss between student and teacher.

The teacher sees the images as the step prepared them, augmented and mixed, and never attacked: under an attack the
student learns to say of the attacked image what the teacher says of the clean one (as in Goldblum et al. 2020,
arXiv:1905.09747). Its cost is one forward pass of the teacher; its logits stay on the device.

With two heads (Touvron et al. 2021, arXiv:2012.12877) the student's class head learns from the labels and its
distillation head from the teacher. Attacks and evaluations see the mean of both, as everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from engine.objective import Inputs, Losses, Objective, is_right
from engine.weight_fields import DistillSection
from models.deit import set_distilled_training


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Another objective, with a teacher beside it."""

    meters: ClassVar[tuple[str, ...]] = ("distill_loss", "agreement")

    inner: Objective
    teacher: Callable[[Tensor], Tensor]  # images (N,3,H,W) -> logits (N,K), a constant
    model: nn.Module  # unwrapped
    settings: DistillSection

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        # Before the student's passes, whose activations are kept.
        taught = self.teacher(inputs.image)
        if self.settings.two_heads:
            heads = TwoHeads(forward=forward, model=self.model)
            found = self.inner(cast(nn.Module, heads), inputs)
            assert heads.second is not None, "the objective made no forward pass"
            student, logits = heads.second, (found.logits + heads.second) / 2
        else:
            found = self.inner(forward, inputs)
            student = logits = found.logits
        distill = distillation_loss(self.settings, student, taught)
        alpha = self.settings.alpha
        agreement = is_right(student, taught.argmax(dim=1))
        return found._replace(
            loss=(1.0 - alpha) * found.loss + alpha * distill,
            logits=logits,
            values={**found.values, "distill_loss": distill, "agreement": agreement},
        )


@dataclass(slots=True, kw_only=True)
class TwoHeads:
    """Stands for a wrapped two-head model before an objective that knows one head: returns the class head's logits
    and keeps those of the other."""

    forward: nn.Module
    model: nn.Module
    second: Tensor | None = None

    def __call__(self, image: Tensor) -> Tensor:
        # For this pass alone: an attack in train mode wants one tensor.
        set_distilled_training(self.model, True)
        try:
            first, self.second = self.forward(image)
        finally:
            set_distilled_training(self.model, False)
        return cast(Tensor, first)


def distillation_loss(settings: DistillSection, student: Tensor, teacher: Tensor) -> Tensor:
    """Of logits (N,K) and (N,K), float32, per sample: (N,)."""
    if settings.kind == "hard":
        return F.cross_entropy(student.float(), teacher.argmax(dim=1), reduction="none")
    loss = soft_distillation(student, teacher, temperature=settings.temperature)
    return loss / student.shape[1] if settings.normalise == "numel" else loss


def soft_distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """t^2 * KL(softmax(teacher / t) || softmax(student / t)) (Hinton et al. 2015, arXiv:1503.02531), per sample."""
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence: Tensor = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return temperature**2 * divergence
