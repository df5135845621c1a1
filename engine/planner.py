"""What a run will cost: counted from its recipe and, by a few updates here, measured. Nothing is written anywhere."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from bits.environment import Environment
from bits.meters import Meters
from data.augment import with_augment
from data.batch import LAM, NUM_DRAWS, Batch
from data.index import DatasetIndex
from data.order import Cursor
from data.remote import is_url
from engine.build import Layout, augment_settings, batch_layout, build_state, check_model
from engine.eval_fields import AttackEval, EvalEntry
from engine.free import make_step
from engine.guard import Guard
from engine.knobs import feed_knobs
from engine.loading import build_train_loader
from engine.passes import passes_of
from engine.recipe import Recipe
from engine.sources import Access
from engine.step import TrainStep, meter_names, step_settings
from engine.timetable import Timetable
from engine.training_set import TrainingSet, open_training_set

BOUND_S = 20.0  # about how long measuring may take
WARM_UP, TIMED = 2, 3  # updates; all graphs exist after two
SMALLEST = 8  # images, of a first try
DATA_S, DATA_BATCHES = 5.0, 8  # the loader alone
FLOAT_BYTES = 4
OTHER_CHECKPOINTS = 1  # healthy-N or candidate-N, once steps-N is pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """None where a number could not be had; `notes` say why, and what the numbers leave out."""

    parameters: int
    num_images: int | None  # of data.train
    updates: int | None
    images: int | None  # trained on, over all epochs
    forward: int  # passes for an image each time
    input_only: int
    full: int
    eval_images: int | None  # of data.val
    eval_forwards: int | None  # of all evaluations; an input-only backward pass counts as one
    checkpoint_bytes: int
    disk_bytes: int
    backend: str | None = None
    measured_batch: int | None = None
    step_images_per_s: float | None = None  # without waiting for data
    data_images_per_s: float | None = None  # of the loader alone
    train_hours: float | None = None
    eval_hours: float | None = None
    memory_bytes: int | None = None
    memory_of: str | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes)}


def count(recipe: Recipe, access: Access) -> tuple[Plan, TrainingSet | None]:
    """What needs no measuring, and the training set where it could be opened."""
    notes: list[str] = []
    index: TrainingSet | None = None
    try:
        index = open_training_set(recipe, access)
    except (ValueError, OSError) as error:
        notes.append(f"data.train cannot be opened, so epochs have no length: {' '.join(str(error).split())}")
    model = check_model(recipe, num_classes=None if index is None else len(index.classes))
    timetable = None
    if index is not None:
        timetable = Timetable(
            recipe=recipe, num_samples=index.num_samples, global_batch=recipe.run.batch_size
        )
    passes = passes_of(recipe.objective)
    updates = None if timetable is None else timetable.num_updates
    eval_images = _eval_images(recipe, access, notes)
    size = _checkpoint_bytes(recipe, model)
    kept = recipe.run.keep_checkpoints + (recipe.run.best is not None) + OTHER_CHECKPOINTS
    if recipe.objective.distill is not None:
        notes.append("the teacher's forward passes are left out")
    if recipe.data.sizes is not None:
        notes.append(f"images count as {recipe.data.image_size} px in every epoch")
    plan = Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        num_images=None if index is None else index.num_samples,
        updates=updates,
        images=None if updates is None else updates * recipe.optim.accumulate * recipe.run.batch_size,
        **passes._asdict(),
        eval_images=eval_images,
        eval_forwards=None if eval_images is None else eval_forwards(recipe, eval_images),
        checkpoint_bytes=size,
        disk_bytes=size * kept,
        notes=tuple(notes),
    )
    return plan, index


def _eval_images(recipe: Recipe, access: Access, notes: list[str]) -> int | None:
    if not recipe.evals:
        return 0
    try:
        return int(access.open(str(recipe.data.val), field="data.val").num_samples)
    except (ValueError, OSError):
        notes.append("data.val cannot be opened: evaluations are not counted")
        return None


def eval_forwards(recipe: Recipe, num_images: int) -> int:
    """Forward passes over an image of all evaluations of a run; suites count as large as data.val."""
    total = 0
    for entry in recipe.evals:
        images = min(entry.num_images or num_images, num_images)
        copies = 2 if recipe.optim.ema is not None and entry.weights == "all" else 1
        times = 1 + (recipe.run.epochs // entry.every if entry.every else 0)
        total += images * copies * times * _forwards(entry)
    return total


def _forwards(entry: EvalEntry) -> int:
    """For an image: the clean verdict, then two for each step of an attack and one for its end."""
    return 1 + entry.restarts * (2 * entry.steps + 1) if isinstance(entry, AttackEval) else 1


def _checkpoint_bytes(recipe: Recipe, model: torch.nn.Module) -> int:
    weights: int = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained: int = sum(p.numel() for p in model.parameters() if p.requires_grad)
    slots = 2 if recipe.optim.name == "adamw" else int(recipe.optim.momentum > 0)
    return weights * (1 if recipe.optim.ema is None else 2) + FLOAT_BYTES * slots * trained


def measured(plan: Plan, recipe: Recipe, env: Environment, index: TrainingSet | None) -> Plan:
    """`plan` with what a few updates on this machine say, within about BOUND_S seconds."""
    begun = time.perf_counter()
    notes = list(plan.notes)
    data_speed = _data_speed(recipe, env, index, notes)
    num_classes = (recipe.data.num_classes or 1000) if index is None else len(index.classes)
    if recipe.objective.distill is not None:
        recipe = _without_teacher(recipe)
    layout = batch_layout(recipe.run.batch_size, env)
    step = _make_step(recipe, env, layout, num_classes)
    seconds, batch = _time_updates(step, recipe, env, layout, num_classes, begun)
    if batch < recipe.run.batch_size:
        notes.append(f"updates were measured with {batch} of {recipe.run.batch_size} images, to end in time")
    notes.append("images of noise; the loader was measured apart" if data_speed else "images of noise")
    speed = batch * env.world_size / seconds if seconds else math.nan
    memory, memory_of = env.peak_memory()
    overall = speed if data_speed is None else min(speed, data_speed)
    forwards = plan.forward + plan.input_only + 2 * plan.full
    eval_s = None if plan.eval_forwards is None else plan.eval_forwards / (speed * forwards)
    return replace(
        plan,
        backend=env.backend,
        measured_batch=batch,
        step_images_per_s=speed,
        data_images_per_s=data_speed,
        train_hours=None if plan.images is None else plan.images / overall / 3600,
        eval_hours=None if eval_s is None else eval_s / 3600,
        memory_bytes=memory,
        memory_of=memory_of,
        notes=tuple(notes),
    )


def _without_teacher(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"distill": None})})


def _data_speed(
    recipe: Recipe, env: Environment, index: TrainingSet | None, notes: list[str]
) -> float | None:
    """Images/s of the loader alone, all processes together; None where there is nothing to load here."""
    if not isinstance(index, DatasetIndex) or is_url(recipe.data.train):
        notes.append("data: none here to measure the loader with")
        return None
    layout = batch_layout(recipe.run.batch_size, env)
    loader = build_train_loader(recipe, env, index, layout=layout, start=Cursor(0, 0))
    times = list(islice(_timed(loader), DATA_BATCHES))
    # The first one waits for the workers to start; it is all there is where one alone takes too long.
    num = max(1, len(times) - 1)
    return num * recipe.run.batch_size / (sum(times[-num:]) or math.nan)


def _timed(loader: Iterator[Any]) -> Iterator[float]:
    """Seconds that each batch took, until there were DATA_S of them."""
    begun = before = time.perf_counter()
    for _ in loader:
        now = time.perf_counter()
        yield now - before
        before = now
        if now - begun > DATA_S:
            return


def _make_step(recipe: Recipe, env: Environment, layout: Layout, num_classes: int) -> TrainStep:
    state = build_state(recipe, env, num_classes=num_classes, layout=layout)
    state.model.train()
    settings = step_settings(recipe, num_classes)
    limit = recipe.run.health.max_skips
    return make_step(
        env=env,
        state=state,
        forward=env.wrap(state.model),
        settings=settings,
        meters=Meters(meter_names(settings), env.device),
        guard=None if limit is None else Guard(state.model, limit=limit, device=env.device),
    )


def _time_updates(
    step: TrainStep, recipe: Recipe, env: Environment, layout: Layout, num_classes: int, begun: float
) -> tuple[float, int]:
    """Seconds of a batch, and the images of this process in it."""
    whole = layout.per_process
    small = _small_batch(recipe, env, whole)
    seconds = _time_batch(step, recipe, env, small, num_classes, begun)
    left = BOUND_S - (time.perf_counter() - begun)
    # Compiling the other size counts too; what it takes is not known before.
    if small == whole or seconds * whole / small * (WARM_UP + TIMED) > left:
        return seconds, small
    return _time_batch(step, recipe, env, whole, num_classes, begun), whole


def _small_batch(recipe: Recipe, env: Environment, whole: int) -> int:
    """About SMALLEST images that norms, devices and mixing take; the whole batch where groups of it are in question."""
    kind, _, size = recipe.model.norm_stats.partition(":")
    if kind == "groups":
        return whole
    unit = (int(size) if kind == "ghost" else 2) * env.num_devices
    found = math.lcm(unit, 2)
    found *= max(1, SMALLEST // found)
    return found if found < whole else whole


def _time_batch(
    step: TrainStep, recipe: Recipe, env: Environment, batch: int, num_classes: int, begun: float
) -> float:
    """The median of the updates behind the warm-up, in seconds; of the first ones where there is no time for more."""
    fed = Batch(**env.feed(_noise(recipe, batch, num_classes)._asdict()))
    numbers = Timetable(recipe=recipe, num_samples=recipe.run.batch_size, global_batch=recipe.run.batch_size)
    knobs = feed_knobs(env, numbers.numbers(0, recipe.run.epochs - 1).knobs)
    times: list[float] = []
    while len(times) < WARM_UP + TIMED:
        before = time.perf_counter()
        for _ in range(recipe.optim.accumulate):
            step(fed, knobs)
        env.later({"totals": step.meters.snapshot()}, lambda host: None)
        env.flush()  # waits for the device
        times.append((time.perf_counter() - before) / recipe.optim.accumulate)
        is_late = int(time.perf_counter() - begun > BOUND_S)
        if env.agree(is_late):
            break
    return statistics.median(times[min(WARM_UP, len(times) - 1) :])


def _noise(recipe: Recipe, batch: int, num_classes: int) -> Batch:
    generator, size = torch.Generator().manual_seed(0), recipe.data.image_size
    small = np.zeros((batch, NUM_DRAWS), np.float32)
    small[:, LAM] = 1.0
    settings = augment_settings(recipe, recipe.run.epochs - 1)
    draw = torch.from_numpy(with_augment(small, np.arange(batch), settings, image_size=size))
    return Batch(
        image=torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8),
        label=torch.randint(0, num_classes, (batch,), generator=generator),
        mask=torch.ones(batch, dtype=torch.bool),
        key=torch.arange(batch),
        seed=torch.arange(batch),
        draw=draw,
    )
