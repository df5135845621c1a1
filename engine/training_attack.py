"""The attack of a train step, and PGD as recipes describe it."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bits.environment import Environment
from bits.noise import noise
from data.batch import START, Batch
from engine.fields import AttackSection
from engine.knobs import Knobs
from robust.pgd import PGD, Loss, cross_entropy, no_cut
from robust.threat import THREATS

ATTACK_STREAM = 0x61747461636B  # "attack": keeps the attack's noise apart from other uses of a sample's seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingAttack:
    """Attacks the images of a training batch, and leaves model, gradients and running statistics as they were."""

    env: Environment
    model: nn.Module  # unwrapped: DDP's hooks have no business in an attack
    settings: AttackSection
    loss: Loss = cross_entropy

    def __call__(self, image: Tensor, goal: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        """The attacked image (N,3,H,W); `goal` int64 [N] or float [N,K] is what the loss is taken with."""
        attack, model = self.settings, self.model
        pgd = build_pgd(
            self.env,
            norm=attack.norm,
            steps=attack.steps,
            step_size=knobs["step_size"],
            random_start=attack.random_start,
            clean_prob=attack.clean_prob,
            loss=self.loss,
        )
        # BatchNorm statistics must not see half-made adversarial images, and dropout would hide gradients.
        model.train(attack.mode == "train")
        # fp16 without a loss scale makes most gradients of a confident model zero (77 to 85 % on the quickstart's
        # models with logits x5), and a zero gradient moves no pixel: there the attack runs in float32.
        with nullcontext() if self.env.precision == "fp16" else self.env.autocast():
            adversarial = pgd(
                model,
                image,
                goal,
                eps=knobs["eps"],
                seed=batch.seed ^ ATTACK_STREAM,
                start_u=batch.draw[:, START],
            )
        model.train()
        return adversarial


def build_pgd(
    env: Environment,
    *,
    norm: Literal["linf", "l2"],
    steps: int,
    step_size: Tensor | float,
    random_start: bool,
    clean_prob: float = 0.0,
    restarts: int = 1,
    best_iterate: bool = False,
    loss: Loss = cross_entropy,
) -> PGD:
    """PGD as a recipe describes it. Graphs are cut between attack steps when there are several, so that the
    number of steps does not grow the graph; a single step stays in one graph with the update."""
    return PGD(
        threat=THREATS[norm],
        steps=steps,
        step_size=step_size,
        noise=noise,
        start="uniform" if random_start else "clean",
        clean_prob=clean_prob,
        restarts=restarts,
        best_iterate=best_iterate,
        loss=loss,
        cut=env.cut if steps > 1 or restarts > 1 else no_cut,
    )
