"""`eval` and `attack`: a trained run judged on shards, into its ledger."""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import latest_checkpoint, load_checkpoint, read_meta
from bits.environment import open_environment
from engine.build import build_model
from engine.cli import Launch
from engine.evaluate import Evaluator
from engine.fields import AttackEval, SuiteEval
from engine.folder import RunFolder
from engine.log import RunLog
from engine.measure import evaluators, keep_pictures, result_name, store_result, table
from engine.override import from_yaml
from engine.recipe import Recipe, parse_recipe
from engine.stop import EXIT_STOPPED, Stopped, StopRequest
from engine.suites import locate, open_eval_set


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Results of the evaluations asked for; also written to results/*.json and to the ledger."""
    source = _source(arguments.run)
    recipe = _with_entries(source.read_recipe(), arguments)
    target = RunFolder(arguments.output or source.root)
    _check_target(target, source)
    classes, state = find_weights(arguments.run)
    for entry in recipe.evals:
        open_eval_set(recipe, entry, classes=classes)
    env = open_environment(
        launch.backend,
        precision="float32",
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
    )
    try:
        model = build_model(recipe, env, num_classes=len(classes), layout=None)
        _load(model, state, arguments)
        target.create()
        log = RunLog(target.log if env.rank == 0 else None)
        models = {arguments.weights: model}
        found = evaluators(
            env, recipe, target.ledger, models, recipe.evals, recipe_hash=source.read_recipe().hash
        )
        results = _evaluate(found, target, log, recipe.run.gallery_images)
    except Stopped:
        log.say("stopped; what was judged is in the ledger, the same command goes on from there")
        return {"exit_code": EXIT_STOPPED}
    finally:
        env.close()
    if env.rank == 0:
        print(table(results), file=sys.stdout)
    return {"exit_code": 0, "results": results}


def _evaluate(
    found: Iterable[tuple[Evaluator, SuiteEval | AttackEval]],
    target: RunFolder,
    log: RunLog,
    num_pictures: int,
) -> list[dict[str, Any]]:
    """Results in the order of the entries; raises Stopped between two batches after a signal."""
    results = []
    with StopRequest() as stop:
        for evaluator, entry in found:
            result = replace(evaluator, stop_asked=lambda: stop.asked).run(entry)
            path = store_result(target, log, result_name(result), result)
            keep_pictures(evaluator, entry, target, path, num_pictures, result)
            results.append({**result, "result": path.stem})
    return results


def _source(path: Path) -> RunFolder:
    """The run folder that `path`, itself one or a checkpoint in one, belongs to."""
    source = RunFolder(path.parent.parent if path.suffix == ".pt" else path)
    if not source.recipe.is_file():
        raise ValueError(
            f"{path} is no run folder, nor a checkpoint in one (no {source.recipe}); "
            "give the folder that train wrote"
        )
    return source


def _check_target(target: RunFolder, source: RunFolder) -> None:
    """Results go into the run, into a new folder, or beside earlier results, never over something else."""
    target.check_writable()
    if target.is_empty() or target.root.samefile(source.root):
        return
    if target.recipe.exists() or not target.ledger.is_dir():
        kind = "another run" if target.recipe.exists() else "something else"
        raise ValueError(f"output folder {target.root} holds {kind}; choose another --output")


def find_weights(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Class names and state: of a run's newest usable checkpoint, or of the checkpoint file given."""
    if path.suffix == ".pt":
        checkpoint, state = read_meta(path), load_checkpoint(path)
    else:
        found = latest_checkpoint(RunFolder(path).checkpoints)
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet; train it first")
        checkpoint, state, passed_over = found
        for line in passed_over if os.environ.get("RANK", "0") == "0" else []:
            print(f"passed over: {line}", file=sys.stderr)
    try:
        return list(checkpoint.facts["classes"]), state
    except (KeyError, TypeError):
        raise ValueError(
            f"{checkpoint.path.with_suffix('.json')} does not name the classes; use an earlier checkpoint"
        ) from None


def _load(model: nn.Module, state: dict[str, Any], arguments: argparse.Namespace) -> None:
    path = arguments.run
    if arguments.weights == "ema" and "ema" not in state:
        raise ValueError(f"{path} keeps no average of its weights (optim.ema was off); use --weights raw")
    try:
        model.load_state_dict(state["model" if arguments.weights == "raw" else "ema"])
    except (RuntimeError, KeyError) as error:
        # torch lists every name that does not fit; the first line of it says which model.
        raise ValueError(
            f"{path}: the weights do not fit the recipe's model ({str(error).splitlines()[0]}); "
            "were they saved by another version of the toolkit? train again"
        ) from None


def _with_entries(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The run's recipe with the evaluations of the command line, checked like those of a file."""
    tree = recipe.model_dump(mode="json")
    tree["run"]["best"] = None  # about the evaluations of the training
    if arguments.verb == "attack" and arguments.data is not None:
        (clean,) = locate(["clean"], recipe, arguments.data)
        tree["data"]["val"] = clean.get("data", tree["data"]["val"])
    if tree["data"]["val"] is None and arguments.data is None:
        raise ValueError("the run's recipe names no data.val; give --data FOLDER")
    tree["evals"] = [
        {k: v for k, v in entry.items() if v is not None} for entry in _entries(arguments, recipe)
    ]
    try:
        return parse_recipe(tree, f"{arguments.verb} {arguments.run}")
    except ValueError as error:
        raise ValueError(_in_flags(str(error))) from None


def _in_flags(line: str) -> str:
    """The line with the flags the user wrote instead of the recipe fields they stand for."""
    return re.sub(r"\bevals\[\d+\]\.(\w+)", lambda match: "--" + str(match[1]).replace("_", "-"), line)


def _entries(arguments: argparse.Namespace, recipe: Recipe) -> list[dict[str, Any]]:
    shared = {"batch_size": arguments.batch_size}
    if arguments.verb == "eval":
        return [entry | shared for entry in locate(arguments.suite.split(","), recipe, arguments.data)]
    return [
        {
            "attack": arguments.attack,
            "norm": arguments.norm,
            "eps": from_yaml(arguments.eps, "--eps"),
            "step_size": _quarter(arguments.eps)
            if arguments.step_size is None
            else from_yaml(arguments.step_size, "--step-size"),
            "steps": arguments.steps,
            "random_start": not arguments.no_random_start,
            "num_images": arguments.num_images,
            **shared,
        }
    ]


def _quarter(eps: str) -> str | float:
    """eps/4 in the form it was written in; what is no number goes on, to be refused with its name."""
    numerator, _, denominator = eps.partition("/")
    try:
        return float(numerator) / float(denominator or 1) / 4
    except (ValueError, ZeroDivisionError):
        return eps
