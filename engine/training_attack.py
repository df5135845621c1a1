"""The attack of a train step, and PGD as recipes describe it."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bits.environment import Environment
from data.batch import START, Batch
from engine.fields import AttackSection
from engine.knobs import Knobs
from models.ghost import attacking
from models.split import Branch, branch
from robust.noise import noise
from robust.pgd import PGD, Loss, cross_entropy, no_cut
from robust.threat import THREATS

ATTACK_STREAM = 0x61747461636B  # "attack": keeps the attack's noise apart from other uses of a sample's seed
TARGET_STREAM = 0x746172676574  # "target"
START_STREAM = 0x7374617274  # "start": whether an attack of an evaluation starts at the clean image


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingAttack:
    """Attacks the images of a training batch, and leaves model, gradients and running statistics as they were."""

    env: Environment
    model: nn.Module  # unwrapped: DDP's hooks have no business in an attack
    settings: AttackSection
    num_classes: int
    loss: Loss = cross_entropy
    branch: Branch | None = None  # of the split norms, where the model has them

    def __call__(self, image: Tensor, goal: Tensor, batch: Batch, knobs: Knobs) -> Tensor:
        """The attacked image (N,3,H,W); `goal` int64 [N] or float [N,K] is what the loss is taken with.

        A targeted attack goes to a class of its own choice instead, and descends to it.
        """
        loss = self.loss
        if self.settings.targeted:
            goal, loss = another_class(batch.label, batch.seed, self.num_classes), towards
        pgd = training_pgd(self.env, self.settings, knobs, loss=loss)
        with self._under_attack():
            return pgd(
                self.model,
                image,
                goal,
                eps=knobs["eps"],
                seed=batch.seed ^ ATTACK_STREAM,
                start_u=batch.draw[:, START],
            )

    def prediction(self, image: Tensor) -> Tensor:
        """The model's probabilities (N,K) on `image` as the attack meets it: in its mode, without a gradient."""
        with self._under_attack(), torch.no_grad():
            logits: Tensor = self.model(image)
            return torch.softmax(logits.float(), dim=1)

    @contextmanager
    def _under_attack(self) -> Iterator[None]:
        attack, model = self.settings, self.model
        with ExitStack() as stack:
            stack.enter_context(attacking(model, by_group=attack.mode == "groups"))
            if self.branch is not None:
                stack.enter_context(branch(model, self.branch))
            # BatchNorm statistics must not see half-made adversarial images, and dropout would hide gradients.
            if attack.mode == "train":
                stack.enter_context(frozen_statistics(model))
            # fp16 without a loss scale makes most gradients of a confident model zero (77 to 85 % on the
            # quickstart's models with logits x5), and a zero gradient moves no pixel: there the attack runs in
            # float32.
            stack.enter_context(nullcontext() if self.env.precision == "fp16" else self.env.autocast())
            model.train(attack.mode == "train")
            yield
        model.train()


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """In train mode every BatchNorm goes on normalising by the batch, but its running statistics stay."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def training_pgd(env: Environment, attack: AttackSection, knobs: Knobs, *, loss: Loss = cross_entropy) -> PGD:
    """The PGD of a recipe's training attack; its radius and step travel in `knobs`."""
    return build_pgd(
        env,
        norm=attack.norm,
        steps=attack.steps if knobs.attack_steps is None else knobs.attack_steps,
        step_size=knobs["step_size"],
        random_start=attack.random_start,
        clean_prob=clean_share(attack),
        loss=loss,
        most_steps=attack.steps,
    )


def clean_share(attack: AttackSection) -> float:
    """The probability of a start from the clean image.

    `batch_normal` starts at noise where a standard normal number exceeds `clean_prob`: then it is Phi(clean_prob).
    """
    if attack.start_rule == "batch_normal":
        return 0.5 * (1.0 + math.erf(attack.clean_prob / math.sqrt(2.0)))
    return attack.clean_prob


def another_class(label: Tensor, seed: Tensor, num_classes: int) -> Tensor:
    """A class other than `label` (int64 [N]) for each sample, uniform over the others, from its `seed` (int64 [N])."""
    uniform = noise(seed ^ TARGET_STREAM, (1,))[:, 0]
    # The product may round up to num_classes - 1.
    skip = (uniform * (num_classes - 1)).to(torch.int64).clamp(max=num_classes - 2)
    return (label + 1 + skip) % num_classes


def towards(logits: Tensor, target: Tensor) -> Tensor:
    """What a targeted attack ascends: the negative cross-entropy to its target, (N,)."""
    return -cross_entropy(logits, target)


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
    most_steps: int | None = None,
) -> PGD:
    """PGD as a recipe describes it. Graphs are cut between attack steps when there are several, or may be
    (`most_steps`, of a warm-up), so that one graph serves any number of steps; where there is never more than one
    it stays in one graph with the update."""
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
        cut=env.cut if max(steps, most_steps or 0, restarts) > 1 else no_cut,
    )
