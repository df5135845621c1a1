"""Objectives that attack their images: one class for each kind, with its cost in passes.

Passes over N images in one update, of an attack of k steps. "input" is a backward pass that reaches the image only.

    kind                      forward   input   full backward
    adversarial               k + 1     k       1
    adversarial, clean_weight k + 2     k       2
    trades                    k + 3     k       2
    mart                      k + 2     k       2
    advprop                   k + 2     k       2    (one forward and one backward over 2N images)

Clean and attacked images are two forward passes in train mode, so each has batch statistics of its own, as in the
published code of TRADES and MART; BatchNorm's running statistics see both.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bits.environment import Environment
from engine.objective import Inputs, Losses, ObjectiveSettings, classification_loss, is_right
from engine.training_attack import TrainingAttack
from models.split import Branch, branch
from robust.losses import kl_divergence, mart, trades
from robust.pgd import Loss, cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """What the objectives of this file share."""

    env: Environment
    model: nn.Module  # unwrapped
    settings: ObjectiveSettings

    attack_loss: ClassVar[Loss] = staticmethod(cross_entropy)
    attack_branch: ClassVar[Branch | None] = None

    @property
    def attack(self) -> TrainingAttack:
        assert self.settings.attack is not None, f"{self.settings.kind} without an attack"
        return TrainingAttack(
            env=self.env,
            model=self.model,
            settings=self.settings.attack,
            num_classes=self.settings.num_classes,
            loss=type(self).attack_loss,
            branch=self.attack_branch,
        )

    def on_label(self, inputs: Inputs) -> Tensor:
        """The batch, attacked with hard labels unless mixing is on, without smoothing (Bai et al. 2021, code)."""
        goal = inputs.target if self.settings.mixing else inputs.batch.label
        return self.attack(inputs.image, goal, inputs.batch, inputs.knobs)

    def loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        return classification_loss(self.settings.loss, logits, target)

    def clean_and_attacked(
        self, forward: nn.Module, image: Tensor, attacked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of both, float32."""
        with self.env.autocast():
            clean, adversarial = forward(image), forward(attacked)
        return clean.float(), adversarial.float()


class Adversarial(Attacked):
    """Loss on attacked images alone (Madry et al. 2018, arXiv:1706.06083).

    With steps 1, a random start and step_size 1.25 * eps it is FGSM-RS (Wong et al. 2020, arXiv:2001.03994).
    """

    __slots__ = ()
    meters: ClassVar[tuple[str, ...]] = ()

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        attacked = self.on_label(inputs)
        with self.env.autocast():
            logits = forward(attacked)
        return Losses(loss=self.loss_of(logits, inputs.target), logits=logits, attacked=attacked)


class WithClean(Attacked):
    """clean_weight * loss on clean images + (1 - clean_weight) * loss on attacked ones (Goodfellow et al. 2015,
    arXiv:1412.6572)."""

    __slots__ = ()
    meters: ClassVar[tuple[str, ...]] = ("clean_loss", "clean_top1", "adversarial_loss")

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        attacked = self.on_label(inputs)
        clean, adversarial = self.clean_and_attacked(forward, inputs.image, attacked)
        return self.weighed(clean, adversarial, inputs, attacked=attacked, share=self.settings.clean_weight)

    def weighed(
        self, clean: Tensor, adversarial: Tensor, inputs: Inputs, *, attacked: Tensor, share: float
    ) -> Losses:
        clean_loss, adversarial_loss = (self.loss_of(x, inputs.target) for x in (clean, adversarial))
        return Losses(
            loss=share * clean_loss + (1.0 - share) * adversarial_loss,
            logits=adversarial,
            attacked=attacked,
            values={
                "clean_loss": clean_loss,
                "clean_top1": is_right(clean, inputs.batch.label),
                "adversarial_loss": adversarial_loss,
            },
        )


class AdvProp(WithClean):
    """Clean images through the main norm, attacked ones through the auxiliary norm, the mean of both losses (Xie et
    al. 2020, arXiv:1911.09665; they sum, so theirs is twice as large).

    The attack goes through the auxiliary norm too. Both halves are one forward pass over [clean; attacked]: DDP
    wants every parameter in every forward.
    """

    __slots__ = ()
    attack_branch: ClassVar[Branch | None] = "adversarial"

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        attacked = self.on_label(inputs)
        with branch(self.model, "halves"), self.env.autocast():
            logits = forward(torch.cat((inputs.image, attacked)))
        clean, adversarial = logits.float().chunk(2)
        return self.weighed(clean, adversarial, inputs, attacked=attacked, share=0.5)


class Trades(Attacked):
    """robust.losses.trades; the attack ascends the divergence from the clean prediction, taken in its own mode."""

    __slots__ = ()
    meters: ClassVar[tuple[str, ...]] = ("clean_loss", "clean_top1", "kl")
    attack_loss: ClassVar[Loss] = staticmethod(kl_divergence)

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        attack = self.attack
        attacked = attack(inputs.image, attack.prediction(inputs.image), inputs.batch, inputs.knobs)
        clean, adversarial = self.clean_and_attacked(forward, inputs.image, attacked)
        parts = trades(clean, adversarial, inputs.target, beta=self.settings.beta)
        values = {"clean_loss": parts.fit, "clean_top1": is_right(clean, inputs.batch.label)}
        return Losses(
            loss=parts.loss, logits=adversarial, attacked=attacked, values={**values, "kl": parts.divergence}
        )


class Mart(Attacked):
    """robust.losses.mart, of labels as they are: neither mixed nor smoothed."""

    __slots__ = ()
    meters: ClassVar[tuple[str, ...]] = ("boosted_loss", "clean_top1", "kl")

    def __call__(self, forward: nn.Module, inputs: Inputs) -> Losses:
        label = inputs.batch.label
        attacked = self.attack(inputs.image, label, inputs.batch, inputs.knobs)
        clean, adversarial = self.clean_and_attacked(forward, inputs.image, attacked)
        parts = mart(clean, adversarial, label, beta=self.settings.beta)
        values = {"boosted_loss": parts.fit, "clean_top1": is_right(clean, label), "kl": parts.divergence}
        return Losses(loss=parts.loss, logits=adversarial, attacked=attacked, values=values)
