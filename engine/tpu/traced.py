"""State and step of a recipe as training builds them, to be traced: no data set, and no weights that were learned."""

from typing import TYPE_CHECKING

from bits.environment import Environment, open_environment
from bits.meters import Meters
from data.batch import Batch
from engine.build import batch_layout, build_state
from engine.free import make_step
from engine.guard import Guard
from engine.knobs import Knobs, feed_knobs
from engine.recipe import Recipe
from engine.step import TrainStep, meter_names, step_settings
from engine.timetable import Timetable
from engine.tpu.stand_in import stand_in
from engine.trial import noise_batch, small_batch

if TYPE_CHECKING:
    from bits.xla_export import ExportEnvironment, Graph


class Traced:
    """The train step of `recipe` on `env`."""

    def __init__(self, env: "ExportEnvironment", recipe: Recipe) -> None:
        self.env, self.recipe = env, recipe
        self.step, self.teacher_name = build_step(env, recipe)

    def record(self) -> list["Graph"]:
        """The graphs of the micro-batch that ends the second update."""
        self.env.settle()
        self._trace(is_last=True)  # an update makes the optimizer's slots
        self.env.settle()
        if self.recipe.optim.accumulate > 1:
            self._trace(is_last=False)  # leaves gradients to add to
            self.env.settle()
        return self._trace(is_last=True, is_recorded=True)

    def _trace(self, *, is_last: bool, is_recorded: bool = False) -> list["Graph"]:
        batch, knobs = feed(self.env, self.recipe, self.recipe.run.batch_size)
        # The micro-batches between the first and the last are the first one's graph.
        self.step.micro = self.recipe.optim.accumulate - 1 if is_last else 0
        if is_recorded:
            return self.env.record(lambda: self.step(batch, knobs))
        self.step(batch, knobs)
        return []


def build_step(env: Environment, recipe: Recipe) -> tuple[TrainStep, str | None]:
    """The step, and the name of its teacher's model."""
    num_classes = recipe.data.num_classes or 1000
    layout = batch_layout(recipe.run.batch_size, env)
    state = build_state(recipe, env, num_classes=num_classes, layout=layout)
    state.model.train()
    settings = step_settings(recipe, num_classes)
    teacher = stand_in(recipe, env, num_classes=num_classes)
    limit = recipe.run.health.max_skips
    step = make_step(
        env=env,
        state=state,
        forward=env.wrap(state.model),
        settings=settings,
        meters=Meters(meter_names(settings), env.device),
        teacher=teacher,
        guard=None if limit is None else Guard(state.model, limit=limit, device=env.device),
    )
    return step, None if teacher is None else teacher.about


def feed(env: Environment, recipe: Recipe, batch_size: int) -> tuple[Batch, Knobs]:
    """A batch of noise and the numbers of a step in the last epoch, when everything is warmed up."""
    noise = noise_batch(recipe, batch_size, recipe.data.num_classes or 1000)
    numbers = Timetable(recipe=recipe, num_samples=batch_size, global_batch=batch_size)
    env.seed(1)
    knobs = feed_knobs(env, numbers.numbers(1, recipe.run.epochs - 1).knobs)
    return Batch(**env.feed(noise._asdict())), knobs


def run_small(recipe: Recipe) -> None:
    """One update with values, on one device and as few images as its norms take."""
    env = open_environment("xla", precision=recipe.run.precision, reduce_dtype=recipe.run.reduce_dtype)
    batch_size = small_batch(recipe, env, recipe.run.batch_size)
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"batch_size": batch_size})})
    step, _ = build_step(env, recipe)
    step.micro = recipe.optim.accumulate - 1
    step(*feed(env, recipe, batch_size))
    env.barrier()
