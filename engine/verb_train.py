"""`train`: from a recipe to a run folder with checkpoints, log, ledger and results."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bits.environment import Environment
from bits.state import TrainState
from engine.agreement import check_same_start, check_same_weights
from engine.build import augment_settings, batch_layout, build_state, mix_settings, norm_words
from engine.cli import Launch
from engine.dry_run import dry_run, open_for_training
from engine.failure import exit_code_of
from engine.flags import recipe_words
from engine.folder import RunFolder
from engine.log import RunLog, open_log
from engine.loop import Loop
from engine.maintenance import MaintenanceWatch
from engine.measure import measure
from engine.receipt import write_receipt
from engine.recipe import Recipe, load_recipe
from engine.resume import check_resume
from engine.sources import Access, open_shards
from engine.start import Start, open_start
from engine.stop import EXIT_STOPPED, Stopped, StopRequest
from engine.subject import Subject
from engine.suites import open_eval_set
from engine.teacher import build_teacher, open_teacher
from engine.tracker import import_wandb, open_trackers
from engine.training_set import Stream, TrainingSet, describe_order, open_training_set
from engine.verdict import weights_hash


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Trains, or goes on, or (finished already) only evaluates what is missing."""
    recipe = load_recipe(arguments.recipe, recipe_words(arguments))
    folder = RunFolder(Path(arguments.output or recipe.run.output or f"runs/{recipe.name}"))
    if arguments.dry_run:
        access = Access(recipe.data.cache, allow_pipes=arguments.allow_pipes, builds=False)
        return dry_run(recipe, folder, access, launch, measures=not arguments.no_measure)
    folder.check_writable()
    checkpoint = check_resume(folder, recipe, arguments.resume)
    if recipe.run.wandb is not None:
        import_wandb()
    access = Access(recipe.data.cache, allow_pipes=arguments.allow_pipes)
    index = open_training_set(recipe, access)
    if recipe.data.val is not None:
        open_shards(recipe.data.val, access, field="data.val", classes=index.classes)
    for entry in recipe.evals:
        open_eval_set(recipe, entry, access, classes=index.classes)
    teacher = open_teacher(recipe, classes=index.classes, folder=folder)
    start = open_start(recipe) if checkpoint is None else None  # a resumed run has its own weights
    env = open_for_training(recipe, launch)
    try:
        with open_log(folder.log, env.rank, quiet=arguments.quiet) as log:
            return train(env, recipe, folder, index, checkpoint, log, access, teacher, start)
    finally:
        env.close()


def train(
    env: Environment,
    recipe: Recipe,
    folder: RunFolder,
    index: TrainingSet,
    checkpoint: Path | None,
    log: RunLog,
    access: Access,
    teacher: Subject | None,
    start: Start | None,
) -> dict[str, Any]:
    """The run itself, in an open environment. Nothing is written before all that can be refused is."""
    layout = batch_layout(recipe.run.batch_size, env)
    if recipe.mixes and layout.per_process % 2:
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} gives each of {env.world_size} processes {layout.per_process} "
            f"images, and mixing pairs neighbours; try {2 * env.world_size * (layout.per_process // 2 + 1)}"
        )
    load = None if start is None else lambda model: log.say(start.load_into(model))
    state = build_state(recipe, env, num_classes=len(index.classes), layout=layout, start=load)
    stop, warn = StopRequest(), partial(log.warn, rank=env.rank)
    with stop, MaintenanceWatch(recipe.run.maintenance_event, stop, warn=warn):
        loop = Loop(
            env=env,
            recipe=recipe,
            state=state,
            index=index,
            layout=layout,
            folder=folder,
            log=log,
            stop=stop,
            evaluate=partial(
                measure,
                env,
                recipe,
                folder,
                weights_by_name(state),
                log,
                lambda: stop.asked,
                access,
                classes=index.classes,
            ),
            teacher=None if teacher is None else build_teacher(teacher, recipe, env),
            init=None if start is None else start.sha256,
        )
        _check_length(loop)
        for epoch in (0, recipe.run.epochs - 1):  # these refuse what a recipe cannot see by itself
            augment_settings(recipe, epoch), mix_settings(recipe, epoch)
        resumed = checkpoint is not None and _resume(loop, checkpoint)
        check_same_start(env, step=state.step, dataset_id=index.dataset_id)
        check_same_weights(env, _weights_to_compare(loop))
        loop.prepare()
        folder.create()
        if resumed:
            loop.save()  # of a start from another run, or a kill before the first checkpoint would lose it
        if env.rank == 0:
            folder.write_start(recipe, env)
        if resumed:
            loop.milestones.settle()
        source = str(checkpoint.resolve()) if resumed and checkpoint is not None else None
        facts = {"recipe": recipe.hash, "backend": env.backend, "source": source, **loop.origin.given}
        log.reached(state.step, loop.num_updates)
        if env.rank == 0:
            log.trackers = open_trackers(
                recipe, folder.root, step=state.step, warn=partial(log.say, important=True)
            )
        facts["norm_stats"] = norm_words(recipe, state.model, layout)
        log.write("start", resumed=resumed, step=state.step, **facts, **_order_facts(loop))
        started = f"resumed at step {state.step}" if resumed else "started"
        log.say(f"{started}: {folder.root} ({env.backend})")
        if loop.teacher is not None:
            log.say(loop.teacher.about)
        _say_order(loop)
        try:
            result = _run_loop(loop)
        except (ValueError, OSError) as error:
            _write_exit(loop, exit_code_of(error), event="error", error=" ".join(str(error).split()))
            raise
    if result["exit_code"] == 0 and env.rank == 0:
        _write_receipt(loop, access)
    _write_exit(loop, result["exit_code"], event="end" if result["exit_code"] == 0 else "stop")
    return result


def _write_receipt(loop: Loop, access: Access) -> None:
    data, images = loop.recipe.data, None
    if data.val is not None and loop.recipe.evals:
        images = access.open(data.val, field="data.val").num_samples
    loop.log.say(
        write_receipt(loop.folder.root, loop.recipe, loop.env, updates=loop.num_updates, eval_images=images)
    )


def weights_by_name(state: TrainState) -> dict[str, nn.Module]:
    """The live weights and, where the recipe keeps one, their average: each is evaluated under its name."""
    return {"raw": state.model} | ({} if state.ema is None else {"ema": state.ema.module})


def _run_loop(loop: Loop) -> dict[str, Any]:
    try:
        loop.run()
        results = loop.milestones.measure(None)
    except Stopped:
        why = f" ({loop.stop.reason})" if loop.stop.reason else ""
        loop.log.say(
            f"stopped at step {loop.state.step}{why}, state saved; start again with --resume auto",
            important=True,
        )
        return {"exit_code": EXIT_STOPPED, "step": loop.state.step, "output": str(loop.folder.root)}
    if not results:
        loop.log.say(
            f"trained; the recipe names no evaluations: `eval {loop.folder.root}` measures the model"
        )
    return {
        "exit_code": 0,
        "step": loop.state.step,
        "output": str(loop.folder.root),
        "results": results,
    }


def _order_facts(loop: Loop) -> dict[str, int | None]:
    """For the log: what the order of the images was made from, and how many of a stream come once more."""
    again = loop.state.consumed if isinstance(loop.index, Stream) else 0
    return {"shards": len(loop.index.shards), "window": loop.origin.window, "again": again}


def _say_order(loop: Loop) -> None:
    if line := describe_order(loop.index, loop.origin.window):
        loop.log.say(line, important=True)
    if again := _order_facts(loop)["again"]:
        loop.log.say(
            f"a stream cannot be entered in the middle: epoch {loop.state.epoch} goes on after {again} images, with "
            "its first images once more",
            important=True,
        )


def _weights_to_compare(loop: Loop) -> dict[str, str | None]:
    """Of a teacher, and of what was loaded to start from."""
    hashes = {"objective.distill.teacher": loop.origin.given["teacher"]}
    if loop.state.step == 0 and loop.origin.init is not None:
        hashes["model.init.path"] = weights_hash(loop.state.model.state_dict())
    return hashes


def _check_length(loop: Loop) -> None:
    if loop.num_updates == 0:
        recipe, num_samples = loop.recipe, loop.index.num_samples
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} (optim.accumulate {recipe.optim.accumulate}) makes no "
            f"update from the {num_samples} images of data.train in {recipe.run.epochs} epochs; lower it"
        )


def _resume(loop: Loop, checkpoint: Path) -> bool:
    try:
        return loop.milestones.resume(checkpoint)
    except (RuntimeError, KeyError, TypeError) as error:
        # torch lists every name that does not fit; the first line of it says which model.
        raise ValueError(
            f"{checkpoint}: the state does not fit the recipe's model ({str(error).splitlines()[0]}); was it "
            "saved by another version of the toolkit? choose another --output"
        ) from None


def _write_exit(loop: Loop, exit_code: int, *, event: str, **values: str) -> None:
    loop.log.write(event, step=loop.state.step, **values)
    if loop.env.rank == 0:
        # Before the trackers, which may wait for a network: other ranks are gone by now, and a launcher that sees
        # one end with a code above 0 ends this one too.
        loop.folder.write_exit(exit_code)
    loop.log.close(exit_code=exit_code)
