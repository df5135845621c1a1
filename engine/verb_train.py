"""`train`: from a recipe to a run folder with checkpoints, log, ledger and results."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from bits.checkpoint import list_checkpoints, write_atomic
from bits.environment import Environment, open_environment
from data.index import DatasetIndex
from engine.build import batch_layout, build_state, open_shards
from engine.cli import Launch
from engine.folder import RunFolder
from engine.log import RunLog
from engine.loop import Loop
from engine.measure import measure
from engine.recipe import Recipe, load_recipe, resume_diff
from engine.stop import EXIT_STOPPED, Stopped, StopRequest


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Trains, or goes on, or (finished already) only evaluates what is missing."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        if os.environ.get("RANK", "0") == "0":
            print(f"{recipe.resolved_yaml()}# hash: {recipe.hash}")
        return {"recipe": recipe.hash}
    folder = RunFolder(Path(arguments.output or recipe.run.output or f"runs/{recipe.name}"))
    checkpoint = check_resume(folder, recipe, arguments.resume)
    index = open_shards(recipe.data.train, field="data.train", num_classes=recipe.data.num_classes)
    if recipe.data.val is not None:
        open_shards(recipe.data.val, field="data.val", num_classes=len(index.classes))
    env = open_environment(
        launch.backend,
        precision=recipe.run.precision,
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
    )
    try:
        result = train(env, recipe, folder, index, checkpoint)
    finally:
        env.close()
    return _finish(folder, env, result)


def check_resume(folder: RunFolder, recipe: Recipe, resume: str) -> Path | None:
    """The checkpoint folder to go on from, or None for a fresh start. ValueError before anything is written."""
    if resume not in ("auto", "never"):
        return _foreign_checkpoints(Path(resume), recipe)
    if not folder.root.exists() or not any(folder.root.iterdir()):
        return None
    if not folder.recipe.is_file():
        raise ValueError(f"output folder {folder.root} is not empty and holds no run; choose another --output")
    if resume == "never":
        raise ValueError(
            f"output folder {folder.root} holds a run and --resume never was given; choose another --output"
        )
    _check_same(folder, recipe)
    return folder.checkpoints if list_checkpoints(folder.checkpoints) else None


def _foreign_checkpoints(path: Path, recipe: Recipe) -> Path:
    root = path.parent.parent if path.suffix == ".pt" else path
    _check_same(RunFolder(root), recipe)
    found = path if path.suffix == ".pt" else root / "checkpoints"
    if not found.exists() or not list_checkpoints(root / "checkpoints"):
        raise ValueError(f"--resume {path}: no checkpoint there; give a run folder or a step-*.pt file in one")
    return found


def _check_same(folder: RunFolder, recipe: Recipe) -> None:
    changed = resume_diff(folder.read_recipe(), recipe)
    if changed:
        raise ValueError(
            f"{folder.root} was made with another recipe: {', '.join(changed)} differ; resuming would mix two runs, "
            "choose another --output or restore the fields"
        )


def train(
    env: Environment, recipe: Recipe, folder: RunFolder, index: DatasetIndex, checkpoint: Path | None
) -> dict[str, Any]:
    """The run itself, in an open environment."""
    layout = batch_layout(recipe.run.batch_size, env)
    folder.create()
    log = RunLog(folder.log if env.rank == 0 else None)
    state = build_state(recipe, env, num_classes=len(index.classes), layout=layout)
    with StopRequest() as stop:
        evaluate = partial(measure, env, recipe, folder, state.model, log)
        loop = Loop(
            env=env,
            recipe=recipe,
            state=state,
            index=index,
            layout=layout,
            folder=folder,
            log=log,
            stop=stop,
            evaluate=evaluate,
        )
        resumed = checkpoint is not None and loop.resume(checkpoint)
        if env.rank == 0:
            folder.write_start(recipe, env)
        log.write("start", resumed=resumed, step=state.step, recipe=recipe.hash, backend=env.backend)
        log.say(f"{'resumed at step ' + str(state.step) if resumed else 'started'}: {folder.root} ({env.backend})")
        try:
            loop.run()
            results = evaluate(None) if recipe.evals else []
        except Stopped:
            log.write("stop", step=state.step)
            log.say(f"stopped at step {state.step}, state saved; start again with --resume auto")
            return {"exit_code": EXIT_STOPPED, "step": state.step, "output": str(folder.root)}
    log.write("end", step=state.step)
    return {"exit_code": 0, "step": state.step, "output": str(folder.root), "results": results}


def _finish(folder: RunFolder, env: Environment, result: dict[str, Any]) -> dict[str, Any]:
    # Outside launchers turn every failure into exit code 1; this file keeps the true one.
    if env.rank == 0:
        write_atomic(folder.root / "exit.json", f'{{"exit_code": {result["exit_code"]}}}\n'.encode())
    return result
