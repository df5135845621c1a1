"""`eval` and `attack`: a trained run judged on shards, into its ledger."""

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any

from bits.environment import open_environment
from engine.attack_entries import attack_entries
from engine.attack_notes import pgd_remarks
from engine.attack_subject import keep_subject, threat_of
from engine.blocks import WHOLE, Part, parse_part
from engine.build import build_model
from engine.cli import Launch
from engine.eval_fields import AnyEval, AttackEval, AutoAttackEval
from engine.evaluate import Evaluator
from engine.fitting import fitting
from engine.folder import RunFolder
from engine.foreign import Stated
from engine.log import RunLog, open_log
from engine.measure import evaluators, judged, keep_pictures, result_name, store_result, table, watched
from engine.meeting import check_pace
from engine.recipe import Recipe, parse_recipe
from engine.sources import Access
from engine.stop import EXIT_STOPPED, Stopped, StopRequest
from engine.subject import Subject, open_subject
from engine.suite_places import locate


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Results of the evaluations asked for; also written to results/*.json and to the ledger."""
    subject = open_subject(arguments.run, weights=arguments.weights, stated=stated(arguments))
    if subject.is_foreign and arguments.output is None:
        raise ValueError(f"{arguments.run} is no run with a place for results; give --output DIR")
    access = Access(arguments.cache or subject.recipe.data.cache, allow_pipes=arguments.allow_pipes)
    part = _part(arguments)
    recipe = with_entries(subject.recipe, arguments, access)
    target = RunFolder(arguments.output) if arguments.output else subject.output
    _check_target(target, subject)
    suites = getattr(arguments, "suite", None)
    recipe, remarks = fitting(recipe, access, subject.classes, suites=suites, root=arguments.data)
    env = open_environment(
        launch.backend,
        precision="float32",
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
    )
    try:
        check_pace(env, recipe.evals)
        model = build_model(recipe, env, num_classes=len(subject.classes), layout=None)
        loaded = subject.load_into(model)
        target.create()
        log = open_log(target.log, env.rank, quiet=arguments.quiet)
        for line in [*([] if loaded is None else [loaded]), *remarks]:
            log.say(line)
        models = {subject.weights: model}
        found = evaluators(
            env,
            recipe,
            target.ledger,
            models,
            recipe.evals,
            access,
            recipe_hash=subject.recipe_hash,
            classes=subject.classes,
        )
        if env.rank == 0 and any(isinstance(entry, AutoAttackEval) for entry in recipe.evals):
            keep_subject(target, arguments, subject)
        with log:
            results = _evaluate(found, subject, target, log, recipe.run.gallery_images, part)
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


def stated(arguments: argparse.Namespace) -> Stated:
    return Stated(
        model=arguments.model,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        words=arguments.overrides,
    )


def _evaluate(
    found: Iterable[tuple[Evaluator, AnyEval]],
    subject: Subject,
    target: RunFolder,
    log: RunLog,
    num_pictures: int,
    part: Part,
) -> list[dict[str, Any]]:
    """Results in the order of the entries; raises Stopped between two batches after a signal."""
    results = []
    with StopRequest() as stop:
        for evaluator, entry in found:
            result = judged(watched(evaluator, entry, log, lambda: stop.asked), entry, part)
            if "part" in result:
                results.append(result)
                continue
            if isinstance(entry, AttackEval):
                result |= pgd_remarks(evaluator, entry, result["evaluation"])
            result |= threat_of(subject, result)
            path = store_result(target, log, result_name(result), result)
            keep_pictures(evaluator, entry, target, path, num_pictures, result)
            results.append({**result, "result": path.stem})
    return results


def _part(arguments: argparse.Namespace) -> Part:
    if arguments.verb != "attack" or arguments.part is None:
        return WHOLE
    if arguments.attack != "autoattack":
        raise ValueError(f"--part is {arguments.part!r}, but belongs to --attack autoattack alone; drop it")
    if arguments.until_ci is not None:
        raise ValueError("--part and --until-ci do not go together: a part does not see the others; drop one")
    return parse_part(arguments.part)


def _check_target(target: RunFolder, subject: Subject) -> None:
    """Results go into the run, into a new folder, or beside earlier results, never over something else."""
    target.check_writable()
    if target.is_empty() or (subject.is_run and target.root.samefile(subject.output.root)):
        return
    if target.recipe.exists() or not target.ledger.is_dir():
        kind = "another run" if target.recipe.exists() else "something else"
        raise ValueError(f"output folder {target.root} holds {kind}; choose another --output")


def with_entries(recipe: Recipe, arguments: argparse.Namespace, access: Access) -> Recipe:
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
        return [entry | {"protocol": arguments.protocol} | shared for entry in found]
    return [entry | shared for entry in attack_entries(arguments)]
