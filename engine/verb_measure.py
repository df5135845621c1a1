"""`eval` and `attack`: a trained run judged on shards, into its ledger."""

import argparse
import sys
from pathlib import Path
from typing import Any

from bits.checkpoint import latest_checkpoint, load_checkpoint
from bits.environment import open_environment
from engine.build import build_model, open_shards
from engine.cli import Launch
from engine.folder import RunFolder
from engine.log import RunLog
from engine.measure import make_evaluator, report_result, table
from engine.recipe import Recipe, parse_recipe


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Results of the evaluations asked for; also written to results/*.json and to the ledger."""
    source, state = find_weights(arguments.run)
    recipe = _with_entries(source.read_recipe(), arguments)
    assert recipe.data.val is not None
    num_classes = len(open_shards(recipe.data.val, field="--data", num_classes=recipe.data.num_classes).classes)
    target = RunFolder(arguments.output or source.root)
    env = open_environment(
        launch.backend, precision="float32", world_size=launch.world_size, num_devices=launch.num_devices
    )
    try:
        target.create()
        log = RunLog(target.log if env.rank == 0 else None)
        model = build_model(recipe, env, num_classes=num_classes, layout=None)
        model.load_state_dict(state["model"])
        evaluator = make_evaluator(env, recipe, target.ledger, model)
        results = []
        for entry in recipe.evals:
            results.append(evaluator.run(entry, batch_size=entry.batch_size or recipe.run.batch_size))
            report_result(target, log, entry.name, results[-1])
        if env.rank == 0:
            print(table(results), file=sys.stdout)
    finally:
        env.close()
    return {"exit_code": 0, "results": results}


def find_weights(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """The run folder and the state of its newest checkpoint, or of the checkpoint file given."""
    if path.suffix == ".pt":
        return RunFolder(path.parent.parent), load_checkpoint(path)
    folder = RunFolder(path)
    folder.read_recipe()
    found = latest_checkpoint(folder.checkpoints)
    if found is None:
        raise ValueError(f"{path} has no checkpoint yet; train it first")
    for line in found[2]:
        print(f"passed over: {line}", file=sys.stderr)
    return folder, found[1]


def _with_entries(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The run's recipe with the evaluations of the command line, checked like those of a file."""
    tree = recipe.model_dump(mode="json")
    if arguments.data is not None:
        tree["data"]["val"] = str(arguments.data)
    if tree["data"]["val"] is None:
        raise ValueError("the run's recipe names no data.val; give --data FOLDER")
    tree["evals"] = [{k: v for k, v in entry.items() if v is not None} for entry in _entries(arguments)]
    return parse_recipe(tree, f"{arguments.verb} {arguments.run}")


def _entries(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    shared = {"batch_size": arguments.batch_size}
    if arguments.verb == "eval":
        return [{"suite": name, **shared} for name in arguments.suite.split(",")]
    return [
        {
            "attack": arguments.attack,
            "norm": arguments.norm,
            "eps": arguments.eps,
            "step_size": arguments.step_size or _quarter(arguments.eps),
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
