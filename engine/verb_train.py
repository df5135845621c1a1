"""`train`: from a recipe to a run folder with checkpoints, log, ledger and results."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import list_checkpoints
from bits.environment import Environment, open_environment
from bits.state import TrainState
from data.index import DatasetIndex
from engine.build import augment_settings, batch_layout, build_state, check_model, mix_settings, open_shards
from engine.cli import Launch
from engine.failure import exit_code_of
from engine.folder import RunFolder
from engine.log import RunLog, open_log, read_log
from engine.loop import Loop
from engine.measure import measure
from engine.recipe import Recipe, load_recipe, resume_diff
from engine.stop import EXIT_STOPPED, Stopped, StopRequest
from engine.suites import open_eval_set
from engine.tracker import import_wandb, open_trackers


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Trains, or goes on, or (finished already) only evaluates what is missing."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        check_model(recipe)
        if os.environ.get("RANK", "0") == "0":
            print(f"{recipe.resolved_yaml()}# hash: {recipe.hash}")
        return {"recipe": recipe.hash}
    folder = RunFolder(Path(arguments.output or recipe.run.output or f"runs/{recipe.name}"))
    folder.check_writable()
    checkpoint = check_resume(folder, recipe, arguments.resume)
    if recipe.run.wandb is not None:
        import_wandb()
    index = open_shards(recipe.data.train, field="data.train", num_classes=recipe.data.num_classes)
    if recipe.data.val is not None:
        open_shards(recipe.data.val, field="data.val", classes=index.classes)
    for entry in recipe.evals:
        open_eval_set(recipe, entry, classes=index.classes)
    env = open_environment(
        launch.backend,
        precision=recipe.run.precision,
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
    )
    try:
        with open_log(folder.log, env.rank, quiet=arguments.quiet) as log:
            return train(env, recipe, folder, index, checkpoint, log)
    finally:
        env.close()


def check_resume(folder: RunFolder, recipe: Recipe, resume: str) -> Path | None:
    """The checkpoints to go on from, or None for a fresh start. ValueError before anything is written."""
    if resume not in ("auto", "never"):
        return _foreign_checkpoints(Path(resume), recipe, folder)
    if folder.is_empty():
        return None
    if not folder.recipe.is_file():
        raise ValueError(
            f"output folder {folder.root} is not empty and holds no run; choose another --output"
        )
    if resume == "never":
        raise ValueError(
            f"output folder {folder.root} holds a run and --resume never was given; choose another --output"
        )
    _check_same(folder, recipe)
    return folder.checkpoints if list_checkpoints(folder.checkpoints) else None


def _foreign_checkpoints(path: Path, recipe: Recipe, folder: RunFolder) -> Path:
    root = path.parent.parent if path.suffix == ".pt" else path
    found = path if path.suffix == ".pt" else root / "checkpoints"
    if not found.exists() or not list_checkpoints(root / "checkpoints"):
        raise ValueError(
            f"--resume {path}: no checkpoint there; give auto, never, a run folder or a step-*.pt file in one"
        )
    _check_same(RunFolder(root), recipe)
    if _is_cut_off(folder):
        return found
    if not folder.is_empty() and not folder.root.samefile(root):
        if _started_from(folder, found):
            # The same command once more: the new run has come as far as the one it started from, or further.
            _check_same(folder, recipe)
            return folder.checkpoints
        raise ValueError(
            f"output folder {folder.root} is not empty and --resume {path} is another run; "
            "choose a new --output"
        )
    return found


def _is_cut_off(folder: RunFolder) -> bool:
    """Whether a start from another run was killed before it had written more than that run's state."""
    if not folder.checkpoints.is_dir():
        return False
    names = {path.name for path in folder.root.iterdir() if not path.name.endswith(".part")}
    states = all(path.name.startswith(("step-", ".step-")) for path in folder.checkpoints.iterdir())
    return names == {folder.checkpoints.name} and states


def _started_from(folder: RunFolder, source: Path) -> bool:
    if not folder.recipe.is_file() or not list_checkpoints(folder.checkpoints):
        return False
    if not folder.log.is_file():
        return True  # killed before its first entry; a fresh start has no checkpoint by then
    return any(entry.get("source") == str(source.resolve()) for entry in read_log(folder.log))


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    changed = resume_diff(folder.read_recipe(), recipe)
    if changed:
        raise ValueError(
            f"{folder.root} was made with another recipe: {', '.join(changed)} differ; resuming would mix "
            "two runs, choose another --output or restore the fields"
        )


def train(
    env: Environment,
    recipe: Recipe,
    folder: RunFolder,
    index: DatasetIndex,
    checkpoint: Path | None,
    log: RunLog,
) -> dict[str, Any]:
    """The run itself, in an open environment. Nothing is written before all that can be refused is."""
    layout = batch_layout(recipe.run.batch_size, env)
    if recipe.mixes and layout.per_process % 2:
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} gives each of {env.world_size} processes {layout.per_process} "
            f"images, and mixing pairs neighbours; try {2 * env.world_size * (layout.per_process // 2 + 1)}"
        )
    state = build_state(recipe, env, num_classes=len(index.classes), layout=layout)
    with StopRequest() as stop:
        loop = Loop(
            env=env,
            recipe=recipe,
            state=state,
            index=index,
            layout=layout,
            folder=folder,
            log=log,
            stop=stop,
            evaluate=partial(measure, env, recipe, folder, weights_by_name(state), log, lambda: stop.asked),
        )
        _check_length(loop)
        for epoch in (0, recipe.run.epochs - 1):  # these refuse what a recipe cannot see by itself
            augment_settings(recipe, epoch), mix_settings(recipe, epoch)
        resumed = checkpoint is not None and _resume(loop, checkpoint)
        _check_same_step(env, state.step)
        folder.create()
        if resumed:
            loop.save()  # of a start from another run, or a kill before the first checkpoint would lose it
        if env.rank == 0:
            folder.write_start(recipe, env)
        source = str(checkpoint.resolve()) if resumed and checkpoint is not None else None
        facts = {"recipe": recipe.hash, "backend": env.backend, "source": source}
        log.reached(state.step, loop.num_updates)
        if env.rank == 0:
            log.trackers = open_trackers(
                recipe, folder.root, step=state.step, warn=partial(log.say, important=True)
            )
        log.write("start", resumed=resumed, step=state.step, **facts)
        started = f"resumed at step {state.step}" if resumed else "started"
        log.say(f"{started}: {folder.root} ({env.backend})")
        try:
            result = _run_loop(loop)
        except (ValueError, OSError) as error:
            _write_exit(loop, exit_code_of(error), event="error", error=" ".join(str(error).split()))
            raise
    _write_exit(loop, result["exit_code"], event="end" if result["exit_code"] == 0 else "stop")
    return result


def weights_by_name(state: TrainState) -> dict[str, nn.Module]:
    """The live weights and, where the recipe keeps one, their average: each is evaluated under its name."""
    return {"raw": state.model} | ({} if state.ema is None else {"ema": state.ema.module})


def _run_loop(loop: Loop) -> dict[str, Any]:
    try:
        loop.run()
        results = loop.measure(None)
    except Stopped:
        loop.log.say(
            f"stopped at step {loop.state.step}, state saved; start again with --resume auto", important=True
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


def _check_same_step(env: Environment, step: int) -> None:
    if env.agree(step) != -env.agree(-step):
        raise ValueError(
            f"processes found different checkpoints (rank {env.rank}: step {step}); the run folder must be on a disk "
            "that all of them see"
        )


def _check_length(loop: Loop) -> None:
    if loop.num_updates == 0:
        recipe, num_samples = loop.recipe, loop.index.num_samples
        raise ValueError(
            f"run.batch_size {recipe.run.batch_size} (optim.accumulate {recipe.optim.accumulate}) makes no "
            f"update from the {num_samples} images of data.train in {recipe.run.epochs} epochs; lower it"
        )


def _resume(loop: Loop, checkpoint: Path) -> bool:
    try:
        return loop.resume(checkpoint)
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
