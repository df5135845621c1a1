"""Whether a recipe could run here: data, model, batch, precision and disk, by the pieces that a run uses."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bits.environment import open_environment
from data.index import INDEX_FILE
from data.remote import is_url
from engine.borrowed import teacher_macs, try_start, try_teacher
from engine.build import batch_layout, check_model
from engine.cli import Launch
from engine.eval_fields import AnyEval, SuiteEval
from engine.finding import Finding, failed
from engine.folder import RunFolder
from engine.machine import nearest_folder
from engine.passes import passes_of
from engine.recipe import Recipe
from engine.sources import Access
from engine.suites import open_eval_set
from engine.training_set import Stream, TrainingSet, open_training_set, window_of
from engine.words import amount
from models.catalogue import count_macs
from models.norm import check_ghost, parse_norm_stats

SECTION = "recipe"
_NO_INDEX = (
    f"tars without {INDEX_FILE}: a training writes it first; `shards index` does it with several processes"
)
STATES = {"adamw": 2, "sgd": 1}  # numbers the optimizer keeps for each parameter


def check_recipe(recipe: Recipe, launch: Launch, run_folder: Path) -> Iterator[Finding]:
    """One finding per check; every check is made, for mistakes come in groups."""
    yield Finding(SECTION, "recipe", f"{recipe.name}, hash {recipe.hash}", "ok")
    index: TrainingSet | None = None
    access = Access(recipe.data.cache, builds=False)
    if _lacks_index(recipe):
        yield Finding(SECTION, "data.train", _NO_INDEX, "advice")
    else:
        try:
            index = open_training_set(recipe, access)
            yield Finding(SECTION, "data.train", _describe(index, recipe), "ok")
        except (ValueError, OSError) as error:
            yield failed(SECTION, "data.train", error)
    yield from _check_evals(recipe, index, access)
    yield from _check_model(recipe, index, run_folder)
    yield from _check_weights(recipe, index, run_folder)
    yield _try("batch", lambda: _check_batch(recipe, launch))
    if recipe.model.norm_stats.startswith("groups:"):
        yield _describe_groups(recipe, launch)


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(SECTION, name, check(), "ok")
    except (ValueError, OSError) as error:
        return failed(SECTION, name, error)


def _lacks_index(recipe: Recipe) -> bool:
    """Of tars in a folder; the doctor writes none."""
    train = recipe.data.train
    folder = None if is_url(train) or not recipe.data.indexed else Path(train)
    return folder is not None and any(folder.glob("*.tar")) and not (folder / INDEX_FILE).exists()


def _describe(index: TrainingSet, recipe: Recipe) -> str:
    batches = index.num_samples // recipe.run.batch_size
    if batches * recipe.run.epochs < recipe.optim.accumulate:
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} makes no update from the {index.num_samples} images of "
            f"data.train; lower it"
        )
    window = window_of(recipe.data, index)
    order = "" if window == len(index.shards) else f", {window} of them shuffled together"
    return (
        f"{index.num_samples:,} images, {len(index.classes)} classes, {len(index.shards)} shards"
        f"{', read in order' if isinstance(index, Stream) else order}; {batches:,} batches of "
        f"{recipe.run.batch_size} an epoch"
    )


def _check_evals(recipe: Recipe, index: TrainingSet | None, access: Access) -> Iterator[Finding]:
    """A line per suite, one for all attacks: these start from the clean images."""
    classes = None if index is None else index.classes
    attacks = [entry for entry in recipe.evals if not isinstance(entry, SuiteEval)]
    entries: list[tuple[str, AnyEval]] = [
        (entry.name, entry) for entry in recipe.evals if isinstance(entry, SuiteEval)
    ]
    if attacks:
        entries.append((", ".join(entry.name for entry in attacks), attacks[0]))
    for name, entry in entries:
        try:
            found = open_eval_set(recipe, entry, access, classes=classes)
            yield Finding(
                SECTION, "evals", f"{name}: {found.index.num_samples:,} images of {found.suite}", "ok"
            )
        except (ValueError, OSError) as error:
            yield failed(SECTION, "evals", error)


def _check_model(recipe: Recipe, index: TrainingSet | None, run_folder: Path) -> Iterator[Finding]:
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


def _check_weights(recipe: Recipe, index: TrainingSet | None, run_folder: Path) -> Iterator[Finding]:
    """Those from elsewhere, loaded into their models."""

    classes = None if index is None else tuple(index.classes)

    def teacher(classes: tuple[str, ...]) -> str:
        found = try_teacher(recipe, RunFolder(run_folder), classes)
        assert found is not None, "a teacher's field without a teacher"
        macs = teacher_macs(found)
        cost = "" if macs is None else f", {amount(macs, 'MACs')} more for each image"
        return f"{found.path}, {found.recipe.model.name}{cost}"

    if recipe.model.init is not None:
        yield _try("model.init", lambda: try_start(recipe, classes))
    if recipe.objective.distill is not None and classes is not None:
        known = classes
        yield _try("teacher", lambda: teacher(known))


def _cost(recipe: Recipe, macs: int) -> str:
    """A backward pass counts as two forward passes, one where only the image's gradient is needed."""
    objective = recipe.objective
    passes = passes_of(objective, recompute=recipe.model.recompute).as_forwards
    attacked = ""
    if objective.kind == "free":
        attacked = f" {objective.replays} times"
    elif objective.attack is not None:
        attacked = f" with PGD-{objective.attack.steps}"
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


def _describe_groups(recipe: Recipe, launch: Launch) -> Finding:
    """Groups are counted for a device, so another number of devices makes other groups of the same recipe."""
    stats = parse_norm_stats(recipe.model.norm_stats)
    devices = (launch.world_size or int(os.environ.get("WORLD_SIZE", "1"))) * launch.num_devices
    size = recipe.run.batch_size // (devices * stats.groups)
    text = (
        f"{recipe.model.norm_stats} on {devices} devices: {devices * stats.groups} groups of {size} images in a batch; "
        "on another number of devices the same words are other groups, and another training"
    )
    if stats.copies is not None and stats.copies != recipe.optim.accumulate:
        text += f"; {stats.copies} copies of them, but optim.accumulate is {recipe.optim.accumulate}"
    return Finding(SECTION, "model.norm_stats", text, "advice")


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
