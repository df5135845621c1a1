"""Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083): the attack of training and of evaluation.

`PGD` is the attack for loops: pure `init`, `step`, `finish` of static shape, no host reads, so training,
lanes and XLA use it as it is. `pgd` wraps it for a person: it checks its arguments and returns verdicts.
Noise is passed in, because device generators differ between backends; deviations from other libraries: the
random start is clipped to [0, 1], and the returned image is the last iterate, as in foolbox and torchattacks;
`best_iterate` and `restarts` ask for the strongest one instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.best import Best, stronger, unjudged
from robust.checks import check_image, check_norm, checked_eps, checked_logits, checked_seed, checked_step
from robust.gradient import Predict, gradient_and_logits, input_gradient
from robust.lanes import misclassified, rows
from robust.noise import noise as hashed_noise
from robust.result import AttackResult
from robust.threat import THREATS, Linf, Noise, ThreatModel

Loss = Callable[[Tensor, Tensor], Tensor]
"""loss(logits (N,K), target) -> one loss per image [N]; the attack ascends it."""

LINF = Linf()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per image [N], float32 at least; target is labels int64 [N] or soft float [N,K]."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if target.is_floating_point():
        target = target.to(dtype)
    return F.cross_entropy(logits.to(dtype), target, reduction="none")


def no_cut() -> None:
    """The cut of a backend whose graphs need none."""


class State(NamedTuple):
    """Where an attack stands: tensors of fixed shape, so it can be kept, gathered or re-packed."""

    image: Tensor  # (N,3,H,W) the current iterate
    clean: Tensor  # (N,3,H,W) the centre of the ball
    target: Tensor  # int64 [N] or float [N,K]
    eps: Tensor  # 0-dim or [N], in pixel units
    best: Best | None  # the strongest judged so far; None in an attack that keeps its last iterate


@dataclass(frozen=True, kw_only=True, slots=True)
class PGD:
    """`steps` ascent steps of `step_size` (pixel units; number or tensor) on the loss, projected after each.

    start "uniform" needs `noise`. With `clean_prob` > 0, an image starts from its clean version where its
    `start_u` (uniform in [0, 1), given to the call) is below `clean_prob`. `cut` is called after `init` and
    after every step: hand in the backend's graph cut where many steps would otherwise become one huge graph,
    so that one graph serves any number of steps; leave it out inside a training step.

    What is returned for an image: its last iterate; with `best_iterate` the strongest of its iterates, the
    start and the last one among them: a misclassified one before one that is classified right, then the one
    of the highest loss, the earliest of equals. That costs one forward pass, for the last iterate; the others
    are judged by the logits their own step has made. With `restarts` > 1 the steps are repeated from other
    random starts (the first is the one of `restarts` 1; `clean_prob` acts on it alone) and the strongest of
    what the restarts give is kept by the same order; judging their last iterates costs one forward each.
    """

    steps: int
    step_size: Tensor | float
    noise: Noise | None = None
    start: Literal["uniform", "clean"] = "uniform"
    clean_prob: Tensor | float = 0.0
    restarts: int = 1
    best_iterate: bool = False
    threat: ThreatModel = LINF
    loss: Loss = cross_entropy
    cut: Callable[[], None] = no_cut

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"PGD steps {self.steps} is negative; use 0 (the start alone) or more")
        if self.start not in ("uniform", "clean"):
            raise ValueError(f"unknown PGD start {self.start!r}; use 'uniform' or 'clean'")
        if self.start == "uniform" and self.noise is None:
            raise ValueError("PGD start 'uniform' needs a noise function; pass noise=..., or start='clean'")
        if self.restarts < 1:
            raise ValueError(f"PGD restarts {self.restarts} is below 1; use 1 (no second try) or more")
        if self.restarts > 1 and self.start == "clean":
            raise ValueError(
                f"PGD restarts {self.restarts} from the clean image would all be equal; use restarts=1, or "
                "a random start"
            )

    def __call__(
        self,
        predict: Predict,
        image: Tensor,
        target: Tensor,
        *,
        eps: Tensor,
        seed: Tensor,
        start_u: Tensor | None = None,
    ) -> Tensor:
        """The attacked image (N,3,H,W), inside the eps-ball around `image` (in [0,1]) and inside [0, 1]."""
        state = self.init(image, target, eps=eps, seed=seed, start_u=start_u)
        self.cut()
        for number in range(self.restarts):
            if number > 0:
                seed = another_seed(seed)
                state = self.restart(state, seed=seed)
                self.cut()
            for _ in range(self.steps):
                state = self.step(predict, state)
                self.cut()
            if self.keeps_best:
                state = self.judge(predict, state)
                self.cut()
        return self.finish(state)

    @property
    def keeps_best(self) -> bool:
        """Whether iterates are judged, so that `judge` belongs between the last step and `finish`."""
        return self.best_iterate or self.restarts > 1

    def init(
        self, image: Tensor, target: Tensor, *, eps: Tensor, seed: Tensor, start_u: Tensor | None = None
    ) -> State:
        """Start of the attack; seed int64 [N], start_u float [N] in [0, 1), needed with clean_prob."""
        clean = image.detach()
        start = self._start(clean, eps, seed, start_u)
        best = unjudged(start) if self.keeps_best else None
        return State(image=start, clean=clean, target=target, eps=eps, best=best)

    def restart(self, state: State, *, seed: Tensor) -> State:
        """Another random start; what was found so far stays. `seed` int64 [N], other than that of `init`."""
        assert self.noise is not None, "__post_init__ refuses restarts without noise"
        return state._replace(image=self.threat.random_start(state.clean, state.eps, self.noise, seed))

    def step(self, predict: Predict, state: State) -> State:
        """One ascent step and projection: one forward and one input-only backward."""
        # Summed, not averaged: an image's gradient must not depend on the batch it is in.
        gradient, logits = gradient_and_logits(
            predict, state.image, lambda logits: self.loss(logits, state.target).sum()
        )
        if self.best_iterate:
            state = self._judged(state, logits)
        moved = self.threat.step(state.image, gradient, self.step_size)
        return state._replace(image=self.threat.project(moved, state.clean, state.eps))

    def judge(self, predict: Predict, state: State) -> State:
        """The current iterate judged against the best so far: one forward pass. For attacks that keep it."""
        with torch.no_grad():
            logits = predict(state.image)
        return self._judged(state, logits)

    def finish(self, state: State) -> Tensor:
        """The last iterate, or the strongest one judged."""
        return state.image if state.best is None else state.best.image

    def _judged(self, state: State, logits: Tensor) -> State:
        assert state.best is not None, "an attack that keeps no best has nothing to judge against"
        with torch.no_grad():
            loss = self.loss(logits, state.target)
        return state._replace(best=stronger(state.best, state.image, logits, state.target, loss))

    def _start(self, clean: Tensor, eps: Tensor, seed: Tensor, start_u: Tensor | None) -> Tensor:
        if self.start == "clean" or self.noise is None:
            return clean
        noisy = self.threat.random_start(clean, eps, self.noise, seed)
        if start_u is None:
            if not isinstance(self.clean_prob, Tensor) and self.clean_prob == 0.0:
                return noisy
            raise ValueError("PGD with clean_prob needs start_u, one uniform draw per image")
        from_clean = (start_u < self.clean_prob).view([-1] + [1] * (clean.dim() - 1))
        return torch.where(from_clean, clean, noisy)


def another_seed(seed: Tensor) -> Tensor:
    """The seeds int64 [N] of the next restart: a step of Knuth's MMIX generator, which wraps at 2**64.

    The same constants each time, so that on XLA one graph serves any number of restarts.
    """
    return seed * 6364136223846793005 + 1442695040888963407


def pgd(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    steps: int,
    random_start: bool = True,
    norm: Literal["linf", "l2"] = "linf",
    seed: int | Tensor = 0,
    restarts: int = 1,
    best_iterate: bool = False,
    loss: Loss = cross_entropy,
    noise: Noise = hashed_noise,
    cut: Callable[[], None] = no_cut,
) -> AttackResult:
    """Attack `image` (N,3,H,W) float in [0,1] with `label` int64 [N] and say which images stay correct.

    `eps` and `step` are lengths in `norm`, in pixel units. `restarts` and `best_iterate` are those of `PGD`. `seed` is
    one int64 per image, or an int from which they are made by position; `noise` is where the starts come from (any
    function of the contract of robust.noise). `loss` is what is ascended, cross-entropy or your own. `predict` is used
    in the mode it comes in: call `model.eval()` before. `zero_gradient` marks images whose gradient is exactly zero at
    the clean image: their robustness is not shown by this attack (saturated float32 cross-entropy, or a masked
    gradient).

    Reads the host (checks); inside a loop use `PGD`. Raises ValueError, one line, for anything outside the
    contract.
    """
    check_image(image, label)
    check_norm(norm, THREATS)
    threat = THREATS[norm]
    widest = threat.widest(image.shape[1:])
    radius = checked_eps(eps, image, widest)
    per_image_seed = checked_seed(seed, image)
    attack = PGD(
        steps=steps,
        step_size=checked_step(step, widest),
        noise=noise,
        start="uniform" if random_start else "clean",
        restarts=restarts,
        best_iterate=best_iterate,
        threat=threat,
        loss=loss,
        cut=cut,
    )
    with torch.no_grad():
        clean_correct = checked_logits(predict(image), image, label).argmax(1) == label
    gradient = input_gradient(predict, image, lambda logits: loss(logits, label).sum())
    adversarial = attack(predict, image, label, eps=radius, seed=per_image_seed)
    # A NaN in a gradient makes an image that is none, which proves nothing.
    lost = ~torch.isfinite(adversarial).flatten(1).all(1)
    adversarial = torch.where(rows(lost, image), image, adversarial)
    with torch.no_grad():
        robust = clean_correct & ~misclassified(predict(adversarial), label)
    name, reasons = f"pgd-{steps}", zip(clean_correct.tolist(), robust.tolist(), strict=True)
    return AttackResult(
        adversarial=adversarial,
        robust=robust,
        broken_by=tuple(None if still else name if was else "clean" for was, still in reasons),
        flags={"clean_correct": clean_correct, "zero_gradient": (gradient == 0).flatten(1).all(1)},
        notes=(f"{int(lost.sum())} images met a NaN in the gradient: not attacked",) * bool(lost.any()),
        version=name,
    )
