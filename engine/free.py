"""Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843): several updates on each batch, and every backward
pass gives the gradient of the weights and that of the images.

The images move by their gradient before the next replay, so an attack costs nothing beside the updates. One call is
one batch: the schedule and the step count go by batches, so an epoch is `replays` passes over the data. Deviation: the
perturbation starts each batch from zero, or from the samples' own noise; the paper carries it over from the batch
before, whose images are others, and then a run would depend on how its batches lie on the machine.

Passes of a batch: `replays` forward and as many full backward passes, none that reaches the image only.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bits.environment import Environment
from bits.meters import Meters
from bits.state import TrainState
from data.batch import START, Batch
from engine.fields import AttackSection
from engine.guard import Guard
from engine.knobs import Knobs
from engine.objective import Inputs
from engine.schedule import EMA_WARMUP_POWER
from engine.step import StepSettings, TrainStep
from engine.training_attack import ATTACK_STREAM, training_pgd
from robust.pgd import PGD, State


def make_step(
    *,
    env: Environment,
    state: TrainState,
    forward: nn.Module,
    settings: StepSettings,
    meters: Meters,
    teacher: Callable[[Tensor], Tensor] | None = None,
    guard: Guard | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> TrainStep:
    """The train step of a recipe: free training has one of its own."""
    kind = FreeStep if settings.objective.kind == "free" else TrainStep
    return kind(
        env=env,
        state=state,
        forward=forward,
        settings=settings,
        meters=meters,
        teacher=teacher,
        guard=guard,
        warn=warn,
    )


@dataclass(slots=True)
class FreeStep(TrainStep):
    """A train step whose objective (the loss alone) is replayed on images that its own gradient moves."""

    def _run(self, batch: Batch, knobs: Knobs) -> bool:
        """One batch on the device, `settings.replays` updates; always True."""
        image, target = self._inputs(batch)
        pgd = training_pgd(self.env, self._attack, knobs)
        state = pgd.init(
            image,
            target,
            eps=knobs["eps"],
            seed=batch.seed ^ ATTACK_STREAM,
            start_u=batch.draw[:, START],
        )
        made = knobs["step"] * self.settings.replays  # updates so far
        # A replay is a graph of its own, the same each time, so that their number does not grow a graph.
        self.env.cut()
        for _ in range(self.settings.replays):
            state = self._replay(pgd, state, batch, self._of_update(made, knobs))
            made = made + 1
            self.env.cut()
        return True

    def _of_update(self, made: Tensor, knobs: Knobs) -> Knobs:
        """The knobs of a batch, with the weight that the average has behind `made` updates (0-dim, on the device)."""
        ema = self.state.ema
        if ema is None or not self.settings.ema_warmup:
            return knobs
        weight = (made + 1).float().pow(-EMA_WARMUP_POWER).clamp(min=1.0 - ema.decay)
        return knobs.replaced("ema_weight", weight)

    @property
    def _attack(self) -> AttackSection:
        attack = self.settings.objective.attack
        assert attack is not None, "free training without an attack"
        return attack

    def _replay(self, pgd: PGD, state: State, batch: Batch, knobs: Knobs) -> State:
        """An update on the images as they are, then their ascent."""
        leaf = state.image.detach().requires_grad_(True)
        if self.guard is not None:
            self.guard.before()
        losses = self.objective(self.forward, Inputs(leaf, state.target, batch, knobs))
        self.env.backward(losses.loss.mean())
        self._show(state.clean, leaf)
        self._measure(losses._replace(attacked=leaf), Inputs(state.clean, state.target, batch, knobs))
        self._update(knobs)
        return state._replace(image=_ascended(pgd, state, leaf.grad))


def _ascended(pgd: PGD, state: State, gradient: Tensor | None) -> Tensor:
    """Where the gradient is NaN (an fp16 overflow, whose update the loss scaler leaves out) the image stays."""
    assert gradient is not None, "the loss does not depend on the image"
    moved = pgd.threat.step(state.image, gradient, pgd.step_size)
    return pgd.threat.project(moved, state.clean, state.eps)
