"""Whether a recipe could run here: data, model, batch, precision and disk, by the pieces that a run uses."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bits.environment import open_environment
from data.index import DatasetIndex
from engine.build import batch_layout, check_model, open_shards
from engine.cli import Launch
from engine.fields import AttackEval, SuiteEval
from engine.finding import Finding, failed
from engine.machine import nearest_folder
from engine.recipe import Recipe
from engine.suites import open_eval_set
from engine.words import amount
from models.catalogue import count_macs
from models.norm import check_ghost

SECTION = "recipe"
STATES = {"adamw": 2, "sgd": 1}  # numbers the optimizer keeps for each parameter


def check_recipe(recipe: Recipe, launch: Launch, run_folder: Path) -> Iterator[Finding]:
    """One finding per check; every check is made, for mistakes come in groups."""
    yield Finding(SECTION, "recipe", f"{recipe.name}, hash {recipe.hash}", "ok")
    index: DatasetIndex | None = None
    try:
        index = open_shards(recipe.data.train, field="data.train", num_classes=recipe.data.num_classes)
        yield Finding(SECTION, "data.train", _describe(index, recipe), "ok")
    except (ValueError, OSError) as error:
        yield failed(SECTION, "data.train", error)
    yield from _check_evals(recipe, index)
    yield from _check_model(recipe, index, run_folder)
    yield _try("batch", lambda: _check_batch(recipe, launch))


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(SECTION, name, check(), "ok")
    except (ValueError, OSError) as error:
        return failed(SECTION, name, error)


def _describe(index: DatasetIndex, recipe: Recipe) -> str:
    batches = index.num_samples // recipe.run.batch_size
    if batches * recipe.run.epochs < recipe.optim.accumulate:
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} makes no update from the {index.num_samples} images of "
            f"data.train; lower it"
        )
    return (
        f"{index.num_samples:,} images, {len(index.classes)} classes, {len(index.shards)} shards; {batches:,} batches "
        f"of {recipe.run.batch_size} an epoch"
    )


def _check_evals(recipe: Recipe, index: DatasetIndex | None) -> Iterator[Finding]:
    """A line per suite, one for all attacks: these start from the clean images."""
    classes = None if index is None else index.classes
    attacks = [entry for entry in recipe.evals if isinstance(entry, AttackEval)]
    entries: list[tuple[str, SuiteEval | AttackEval]] = [
        (entry.name, entry) for entry in recipe.evals if not isinstance(entry, AttackEval)
    ]
    if attacks:
        entries.append((", ".join(entry.name for entry in attacks), attacks[0]))
    for name, entry in entries:
        try:
            found = open_eval_set(recipe, entry, classes=classes)
            yield Finding(
                SECTION, "evals", f"{name}: {found.index.num_samples:,} images of {found.suite}", "ok"
            )
        except (ValueError, OSError) as error:
            yield failed(SECTION, "evals", error)


def _check_model(recipe: Recipe, index: DatasetIndex | None, run_folder: Path) -> Iterator[Finding]:
    try:
        num_classes = None if index is None else len(index.classes)
        model = check_model(recipe, num_classes=num_classes)
    except ValueError as error:
        yield failed(SECTION, "model", error)
        return
    parameters = sum(p.numel() for p in model.parameters())
    yield Finding(
        SECTION, "model", f"{model.name}, {parameters:,} parameters, {model.num_classes} classes", "ok"
    )
    macs = count_macs(model, (3, recipe.data.image_size, recipe.data.image_size))
    if macs is not None:
        yield Finding(SECTION, "cost", _cost(recipe, macs))
    yield _try("disk", lambda: _check_disk(recipe, parameters, run_folder))


def _cost(recipe: Recipe, macs: int) -> str:
    """A backward pass counts as two forward passes, one where only the image's gradient is needed."""
    attack = recipe.objective.attack
    passes = 3 + (0 if attack is None else 2 * attack.steps)
    attacked = "" if attack is None else f" with PGD-{attack.steps}"
    return (
        f"one image: {amount(macs, 'MACs')} forward, about {amount(passes * macs, 'MACs')} to train on{attacked} "
        f"({passes} forward passes)"
    )


def _check_disk(recipe: Recipe, parameters: int, run_folder: Path) -> str:
    optim, run = recipe.optim, recipe.run
    copies = 1 + STATES.get(optim.name, 2) + (optim.ema is not None)
    files = run.keep_checkpoints + 1 + (run.best is not None)  # one is written before the oldest goes
    needed = 4 * parameters * copies * files
    place = nearest_folder(run_folder)
    free = shutil.disk_usage(place).free
    text = f"{files} checkpoints of {amount(needed / files, 'B')} need {amount(needed, 'B')}"
    if needed > free:
        raise ValueError(
            f"{text} and {place} has {amount(free, 'B')} free; lower run.keep_checkpoints or change run.output"
        )
    return f"{text}, {amount(free, 'B')} are free at {place}"


def _check_batch(recipe: Recipe, launch: Launch) -> str:
    """Opens the environment, which also says whether it has the recipe's precision."""
    env = open_environment(
        launch.backend,
        precision=recipe.run.precision,
        world_size=launch.world_size,
        num_devices=launch.num_devices,
    )
    try:
        layout = batch_layout(recipe.run.batch_size, env)
        check_ghost(recipe.model.norm_stats, layout.per_device)
        return f"{layout.global_batch} images, {layout.per_device} on each device, in {recipe.run.precision}"
    finally:
        env.close()
