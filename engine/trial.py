"""A trial of a recipe on this machine: a few updates on images of noise, and a few batches of its loader."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
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
from engine.build import Layout, augment_settings, batch_layout, build_state
from engine.free import make_step
from engine.guard import Guard
from engine.knobs import feed_knobs
from engine.loading import build_train_loader
from engine.planner import Plan
from engine.recipe import Recipe
from engine.step import TrainStep, meter_names, step_settings
from engine.subject import Subject
from engine.teacher import build_teacher
from engine.timetable import Timetable
from engine.training_set import TrainingSet

BOUND_S = 20.0  # about how long measuring may take
WARM_UP, TIMED = 2, 3  # updates; all graphs exist after two
SMALLEST = 8  # images, of a first try
DATA_S, DATA_BATCHES = 5.0, 8  # the loader alone


def measured(
    plan: Plan,
    recipe: Recipe,
    env: Environment,
    index: TrainingSet | None,
    *,
    teacher: Subject | None = None,
) -> Plan:
    """`plan` with what a few updates on this machine say, within about BOUND_S seconds. `teacher`: that of the recipe,
    where it is at hand; the updates are measured without one else."""
    begun = time.perf_counter()
    notes = list(plan.notes)
    data_speed = _data_speed(recipe, env, index, notes)
    num_classes = (recipe.data.num_classes or 1000) if index is None else len(index.classes)
    if recipe.objective.distill is not None and teacher is None:
        recipe = _without_teacher(recipe)
        notes.append("updates were measured without the teacher")
    layout = batch_layout(recipe.run.batch_size, env)
    step = _make_step(recipe, env, layout, num_classes, teacher)
    seconds, batch = _time_updates(step, recipe, env, layout, num_classes, begun)
    if batch < recipe.run.batch_size:
        notes.append(f"updates were measured with {batch} of {recipe.run.batch_size} images, to end in time")
    notes.append("images of noise; the loader was measured apart" if data_speed else "images of noise")
    speed = batch * env.world_size / seconds if seconds else math.nan
    memory, memory_of = env.peak_memory()
    overall = speed if data_speed is None else min(speed, data_speed)
    forwards = (plan if teacher is not None else replace(plan, teacher_cost=None)).forwards
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


def _make_step(
    recipe: Recipe, env: Environment, layout: Layout, num_classes: int, teacher: Subject | None
) -> TrainStep:
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
        teacher=None if teacher is None else build_teacher(teacher, recipe, env),
        guard=None if limit is None else Guard(state.model, limit=limit, device=env.device),
    )


def _time_updates(
    step: TrainStep, recipe: Recipe, env: Environment, layout: Layout, num_classes: int, begun: float
) -> tuple[float, int]:
    """Seconds of a batch, and the images of this process in it."""
    whole = layout.per_process
    small = small_batch(recipe, env, whole)
    seconds = _time_batch(step, recipe, env, small, num_classes, begun)
    left = BOUND_S - (time.perf_counter() - begun)
    # Compiling the other size counts too; what it takes is not known before.
    if small == whole or seconds * whole / small * (WARM_UP + TIMED) > left:
        return seconds, small
    return _time_batch(step, recipe, env, whole, num_classes, begun), whole


def small_batch(recipe: Recipe, env: Environment, whole: int) -> int:
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
    fed = Batch(**env.feed(noise_batch(recipe, batch, num_classes)._asdict()))
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


def noise_batch(recipe: Recipe, batch: int, num_classes: int) -> Batch:
    """`batch` images of noise with labels, as the loader gives them in the last epoch without mixing."""
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
