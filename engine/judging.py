"""What happens to a batch of an evaluation on the device: attacked where that was asked for, and judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bits.environment import Environment
from data.batch import Batch
from engine.eval_fields import AttackEval, SuiteEval
from engine.eval_set import Change
from engine.rows import CLEAN
from engine.training_attack import ATTACK_STREAM, START_STREAM, build_pgd
from engine.verdict import judge
from engine.view import Tables, View, judge_all
from robust.noise import noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """By one model, in the mode that it is in."""

    env: Environment
    model: nn.Module
    views: tuple[View, ...]
    change: Change | None  # of the images of a suite, on their way to the model

    def verdicts(
        self, entry: SuiteEval | AttackEval, batch: Batch, tables: Sequence[Tables]
    ) -> dict[str, Tensor]:
        """Of every image of `batch`, which was fed; the names are a component's, or a view's, and what they say."""
        image = batch.image.float() / 255.0
        if isinstance(entry, AttackEval):
            verdicts = self._of(CLEAN, image, batch)
            verdicts |= self._of(entry.name, self.attacked(entry, image, batch), batch)
        else:
            verdicts = self._viewed(
                image if self.change is None else self.change(image, batch), batch, tables
            )
        self.env.cut()
        return verdicts

    @torch.no_grad()
    def _viewed(self, image: Tensor, batch: Batch, tables: Sequence[Tables]) -> dict[str, Tensor]:
        return judge_all(self.views, self.model(image), batch.label, batch.key, tables)

    def shown(self, batch: Batch) -> Tensor:
        """uint8 [N,3,H,W]: what the model is given."""
        if self.change is None:
            return batch.image
        return (self.change(batch.image.float() / 255.0, batch) * 255.0).round().to(torch.uint8)

    @torch.no_grad()
    def _of(self, component: str, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        # No autocast: the prediction that counts is float32 whatever the training's precision was.
        return {f"{component}/{n}": v for n, v in judge(self.model(image), batch.label)._asdict().items()}

    def attacked(self, entry: AttackEval, image: Tensor, batch: Batch) -> Tensor:
        """float32 [N,3,H,W] like `image`, in [0, 1]."""
        pgd = build_pgd(
            self.env,
            norm=entry.norm,
            steps=entry.steps,
            step_size=entry.step_size,
            random_start=entry.random_start,
            restarts=entry.restarts,
            best_iterate=entry.best_iterate,
            clean_prob=entry.clean_prob,
        )
        seed = batch.seed ^ ATTACK_STREAM
        eps = self.env.feed({"eps": torch.tensor(entry.eps)}, split=False)["eps"]
        target = batch.label.clamp(min=0)  # padding slots have no label; their verdicts are not written
        start_u = noise(seed ^ START_STREAM, (1,))[:, 0] if entry.clean_prob > 0.0 else None
        return pgd(self.model, image, target, eps=eps, seed=seed, start_u=start_u)


def attack_settings(entry: SuiteEval | AttackEval) -> Mapping[str, object] | None:
    """The part of an evaluation's id that is about its attack."""
    if not isinstance(entry, AttackEval):
        return None
    fields = ("attack", "norm", "eps", "step_size", "steps", "random_start", "restarts", "best_iterate")
    settings = {name: getattr(entry, name) for name in fields}
    if entry.preset != "none":
        settings |= {"preset": entry.preset, "clean_prob": entry.clean_prob}
    return settings
