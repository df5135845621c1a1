"""`eval` and `attack`: a trained run judged on shards, into its ledger."""

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from bits.environment import open_environment
from engine.build import build_model
from engine.cli import Launch
from engine.eval_fields import AnyEval, radius_name
from engine.evaluate import Evaluator
from engine.folder import RunFolder
from engine.foreign import Stated
from engine.log import RunLog, open_log
from engine.measure import evaluators, judged, keep_pictures, result_name, store_result, table, watched
from engine.override import from_yaml
from engine.recipe import Recipe, parse_recipe
from engine.sources import Access
from engine.stop import EXIT_STOPPED, Stopped, StopRequest
from engine.subject import Subject, open_subject
from engine.suites import locate, open_eval_set

PGD_STEPS = 20


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Results of the evaluations asked for; also written to results/*.json and to the ledger."""
    subject = open_subject(arguments.run, weights=arguments.weights, stated=_stated(arguments))
    if subject.is_foreign and arguments.output is None:
        raise ValueError(f"{arguments.run} is no run with a place for results; give --output DIR")
    access = Access(arguments.cache or subject.recipe.data.cache, allow_pipes=arguments.allow_pipes)
    recipe = _with_entries(subject.recipe, arguments, access)
    target = RunFolder(arguments.output) if arguments.output else subject.output
    _check_target(target, subject)
    for entry in recipe.evals:
        open_eval_set(recipe, entry, access, classes=subject.classes)
    env = open_environment(
        launch.backend,
        precision="float32",
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
    )
    try:
        model = build_model(recipe, env, num_classes=len(subject.classes), layout=None)
        loaded = subject.load_into(model)
        target.create()
        log = open_log(target.log, env.rank, quiet=arguments.quiet)
        if loaded is not None:
            log.say(loaded)
        models = {subject.weights: model}
        found = evaluators(
            env, recipe, target.ledger, models, recipe.evals, access, recipe_hash=subject.recipe_hash
        )
        with log:
            results = _evaluate(found, target, log, recipe.run.gallery_images)
    except Stopped:
        log.say(
            "stopped; what was judged is in the ledger, the same command goes on from there", important=True
        )
        return {"exit_code": EXIT_STOPPED}
    finally:
        env.close()
    if env.rank == 0:
        print(table(results), file=sys.stdout)
    return {"exit_code": 0, "results": results}


def _stated(arguments: argparse.Namespace) -> Stated:
    return Stated(
        model=arguments.model,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        words=arguments.overrides,
    )


def _evaluate(
    found: Iterable[tuple[Evaluator, AnyEval]],
    target: RunFolder,
    log: RunLog,
    num_pictures: int,
) -> list[dict[str, Any]]:
    """Results in the order of the entries; raises Stopped between two batches after a signal."""
    results = []
    with StopRequest() as stop:
        for evaluator, entry in found:
            result = judged(watched(evaluator, entry, log, lambda: stop.asked), entry)
            path = store_result(target, log, result_name(result), result)
            keep_pictures(evaluator, entry, target, path, num_pictures, result)
            results.append({**result, "result": path.stem})
    return results


def _check_target(target: RunFolder, subject: Subject) -> None:
    """Results go into the run, into a new folder, or beside earlier results, never over something else."""
    target.check_writable()
    if target.is_empty() or (subject.is_run and target.root.samefile(subject.output.root)):
        return
    if target.recipe.exists() or not target.ledger.is_dir():
        kind = "another run" if target.recipe.exists() else "something else"
        raise ValueError(f"output folder {target.root} holds {kind}; choose another --output")


def _with_entries(recipe: Recipe, arguments: argparse.Namespace, access: Access) -> Recipe:
    """The run's recipe with the evaluations of the command line, checked like those of a file."""
    tree = recipe.model_dump(mode="json")
    tree["data"]["eval_bad"] = arguments.bad_images or tree["data"]["eval_bad"]
    tree["run"]["best"] = None  # about the evaluations of the training
    if arguments.verb == "attack" and arguments.data is not None:
        (clean,) = locate(["clean"], recipe, arguments.data, access)
        tree["data"]["val"] = clean.get("data", tree["data"]["val"])
    if tree["data"]["val"] is None and arguments.data is None:
        raise ValueError("the run's recipe names no data.val; give --data FOLDER")
    tree["evals"] = [
        {k: v for k, v in entry.items() if v is not None} for entry in _entries(arguments, recipe, access)
    ]
    try:
        return parse_recipe(tree, f"{arguments.verb} {arguments.run}")
    except ValueError as error:
        raise ValueError(_in_flags(str(error))) from None


def _in_flags(line: str) -> str:
    """The line with the flags the user wrote instead of the recipe fields they stand for."""
    line = re.sub(r"\bevals\[\d+\]\.(\w+)", lambda match: "--" + str(match[1]).replace("_", "-"), line)
    line = line.replace("--random-start", "--no-random-start")
    return line.replace("an entry of this kind; remove it", "this attack; drop it")


def _entries(arguments: argparse.Namespace, recipe: Recipe, access: Access) -> list[dict[str, Any]]:
    shared = {
        "batch_size": arguments.batch_size,
        "images": arguments.images,
        "num_images": arguments.num_images,
    }
    if arguments.verb == "eval":
        found = locate(arguments.suite.split(","), recipe, arguments.data, access)
        return [entry | shared for entry in found]
    return [
        {"attack": arguments.attack, "norm": arguments.norm, "eps": from_yaml(eps, "--eps")}
        | _settings(arguments, eps)
        | shared
        for eps in _radii(arguments.eps, arguments.norm)
    ]


def _settings(arguments: argparse.Namespace, eps: str) -> dict[str, Any]:
    """What the command line says of the attack; None where it says nothing. What is no setting of it is refused
    with the recipe's entries."""
    step = arguments.step_size
    told = {
        "step_size": None if step is None else from_yaml(step, "--step-size"),
        "steps": arguments.steps,
        "random_start": False if arguments.no_random_start else None,
        "restarts": arguments.restarts,
        "best_iterate": arguments.best_iterate or None,
        "version": arguments.version,
        "save_images": arguments.save_images or None,
    }
    if arguments.attack == "autoattack":
        return told
    usual = {"step_size": _quarter(eps), "steps": PGD_STEPS}
    return told | {name: value for name, value in usual.items() if told[name] is None}


def _radii(text: str, norm: str) -> list[str]:
    """The radii of --eps as they were written; each is to have a result of its own, so none comes twice."""
    radii = [part.strip() for part in text.split(",")]
    if "" in radii:
        raise ValueError(
            f"--eps is {text!r}, where item {radii.index('') + 1} is empty; write radii with one comma between, "
            "such as 4/255,8/255"
        )
    seen: dict[str, str] = {}
    for eps in radii:
        quarter = _quarter(eps)
        name = eps if isinstance(quarter, str) else radius_name(norm, 4 * quarter)
        if name in seen:
            raise ValueError(
                f"--eps is {text!r}, where {seen[name]} and {eps} are one radius, {name}; drop one of them"
            )
        seen[name] = eps
    return radii


def _quarter(eps: str) -> str | float:
    """eps/4 in the form it was written in; what is no number goes on, to be refused with its name."""
    numerator, _, denominator = eps.partition("/")
    try:
        return float(numerator) / float(denominator or 1) / 4
    except (ValueError, ZeroDivisionError):
        return eps
