"""Checks of an adversarial training while it runs, and the alarm for catastrophic overfitting.

A model that is trained on single-step attacks may, from one epoch to the next, resist these and nothing else: accuracy
under FGSM stays or rises while that under PGD falls to zero (Wong et al. 2020, arXiv:2001.03994). A check takes a few
images of the batch at hand, augmented and unmixed, and attacks them by both, in eval mode.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bits.environment import Environment
from bits.meters import Meters
from data.augment import DeviceAugment
from data.batch import Batch
from engine.fields import AttackSection
from engine.health_fields import HealthSection
from engine.objective import is_right
from engine.training_attack import build_pgd
from robust.gradient import input_gradient
from robust.pgd import cross_entropy
from robust.threat import THREATS

HEALTH_STREAM = (
    0x6865616C7468  # "health": keeps the noise of a check apart from other uses of a sample's seed
)
METERS = ("fgsm_top1", "pgd_top1", "zero_gradients")
WORTH_LOSING = 0.1  # a best accuracy under PGD below this has nothing to fall from


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measures on the device and leaves the model as it was; the numbers wait in `meters`."""

    env: Environment
    model: nn.Module  # unwrapped
    attack: AttackSection  # of the training: norm and, in the knobs, radius
    settings: HealthSection
    augment: DeviceAugment
    meters: Meters = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "meters", Meters(METERS, self.env.device))

    def __call__(self, batch: Batch, eps: Tensor) -> None:
        """`batch` as it was fed; `eps` 0-dim, that of the step."""
        share = max(1, self.settings.images // self.env.parts)
        few = Batch(*(tensor[:share] for tensor in batch))
        image = self.augment.before_mix(few.image, few.draw, few.seed)
        self.model.eval()
        try:
            self.meters.add_(self._values(image, few, eps), few.mask)
        finally:
            self.model.train()
        self.env.cut()

    def _values(self, image: Tensor, batch: Batch, eps: Tensor) -> dict[str, Tensor]:
        gradient = input_gradient(
            self._predict, image, lambda logits: cross_entropy(logits, batch.label).sum()
        )
        threat = THREATS[self.attack.norm]
        fgsm = threat.project(threat.step(image, gradient, eps), image, eps)
        self.env.cut()
        pgd = build_pgd(
            self.env,
            norm=self.attack.norm,
            steps=self.settings.steps,
            step_size=eps / 4.0,
            random_start=True,
        )
        attacked = pgd(self._predict, image, batch.label, eps=eps, seed=batch.seed ^ HEALTH_STREAM)
        with torch.no_grad():
            return {
                "fgsm_top1": is_right(self._predict(fgsm), batch.label),
                "pgd_top1": is_right(self._predict(attacked), batch.label),
                "zero_gradients": (gradient == 0).float().flatten(1).mean(dim=1),
            }

    def _predict(self, image: Tensor) -> Tensor:
        # In fp16 as the training attack: without a loss scale most gradients would be zero.
        if self.env.precision == "fp16":
            logits: Tensor = self.model(image)
            return logits
        with self.env.autocast():
            logits = self.model(image)
        return logits


class Watch(NamedTuple):
    """What the alarm remembers from check to check."""

    best: float = 0.0  # accuracy under PGD
    low: int = 0  # checks beyond a limit, in a row


def check(watch: Watch, *, fgsm: float, pgd: float, settings: HealthSection) -> tuple[Watch, str | None]:
    """The memory after a check and, at the check that makes the alarm, what is wrong, in words."""
    gap, floor = fgsm - pgd, settings.min_share * watch.best
    why = None
    if gap > settings.max_gap:
        why = f"accuracy is {100 * fgsm:.0f} % under FGSM and {100 * pgd:.0f} % under PGD-{settings.steps}"
    elif watch.best >= WORTH_LOSING and pgd < floor:
        why = f"accuracy under PGD-{settings.steps} fell to {100 * pgd:.0f} %, from {100 * watch.best:.0f} %"
    low = watch.low + 1 if why else 0
    best = watch.best if why else max(watch.best, pgd)
    return Watch(best, low), why if low == settings.patience else None
