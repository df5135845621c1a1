"""Runs the evaluations of a recipe on a model's weights, writes results/NAME.json and prints one line each."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import write_atomic
from bits.environment import Environment
from engine.attack_pictures import store_attack_gallery
from engine.autoattack import run_autoattack
from engine.blocks import WHOLE, Part
from engine.eval_fields import AnyEval, AutoAttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.folder import RunFolder
from engine.gallery import store_gallery
from engine.groups import run_group
from engine.log import RunLog
from engine.overlap import overlaps
from engine.recipe import Recipe
from engine.rows import CLEAN
from engine.sources import Access
from engine.suite_text import suite_lines
from engine.suites import open_eval_set
from engine.verdict import weights_hash

Entry = AnyEval
Stop = Callable[[], bool]


def measure(
    env: Environment,
    recipe: Recipe,
    folder: RunFolder,
    models: Mapping[str, nn.Module],
    log: RunLog,
    stop_asked: Stop,
    access: Access,
    epoch: int | None,
    *,
    classes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The recipe's evaluations due after `epoch` epochs (None: the end of the run, all of them), of each of
    `models`: "raw" and, where the recipe keeps an average, "ema".

    Raises Stopped between two batches after a stop request; called again, it goes on from the ledger.
    """
    due = [e for e in recipe.evals if epoch is None or (e.every and epoch % e.every == 0)]
    results = []
    found = evaluators(
        env, recipe, folder.ledger, models, due, access, recipe_hash=recipe.hash, classes=classes
    )
    for evaluator, entry in found:
        result = judged(watched(evaluator, entry, log, stop_asked), entry)
        name = result_name(result)
        stored = name if epoch is None else f"{name}-epoch{epoch}"
        path = store_result(folder, log, stored, result)
        if epoch is None:
            keep_pictures(evaluator, entry, folder, path, recipe.run.gallery_images, result)
        results.append({**result, "result": path.stem})
        log.say(describe(stored, result), important=True)
    return results


def evaluators(
    env: Environment,
    recipe: Recipe,
    ledger: Path,
    models: Mapping[str, nn.Module],
    entries: Sequence[Entry],
    access: Access,
    *,
    recipe_hash: str,
    classes: Sequence[str] | None = None,
) -> Iterator[tuple[Evaluator, Entry]]:
    """An evaluator for each entry and each of the weights it asks for. `recipe_hash` and `classes` are the
    training's."""
    hashes = {name: weights_hash(model.state_dict()) for name, model in models.items()} if entries else {}
    for entry in entries:
        found = open_eval_set(recipe, entry, access, classes=classes)
        for name in weights_of(entry, models):
            evaluator = Evaluator(
                env=env,
                model=models[name],
                weights_sha256=hashes[name],
                index=found.index,
                transform=found.transform,
                suite=found.suite,
                weights=name,
                image_size=recipe.data.image_size,
                batch_size=recipe.run.batch_size,
                num_workers=recipe.data.num_workers,
                seed=recipe.run.seed,
                ledger=ledger,
                recipe=recipe_hash,
                bad=recipe.data.eval_bad,
                stuck_after_s=recipe.data.stuck_after,
                protocol=found.protocol,
                views=found.views,
                judged=found.judged,
                change=found.change,
                change_id=found.change_id,
                parts=found.parts,
                missing=found.missing,
                overlap=overlaps(recipe) if found.parts and recipe_hash else {},
                notes=found.notes,
                num_pictures=recipe.run.gallery_images,
            )
            yield evaluator, entry


def watched(evaluator: Evaluator, entry: Entry, log: RunLog, stop_asked: Stop) -> Evaluator:
    """The evaluator that shows how far it is, under the name its result will have."""
    name = result_name({"name": entry.name, "weights": evaluator.weights})
    warn = partial(log.warn, rank=evaluator.env.rank)
    return replace(
        evaluator,
        stop_asked=stop_asked,
        on_progress=partial(log.judged, name),
        warn=warn,
        say=partial(_say, log, name),
        record=lambda values: log.write("attack", name=name, **values),
    )


def judged(evaluator: Evaluator, entry: Entry, part: Part = WHOLE) -> dict[str, Any]:
    """The result of any kind of entry, or of a part of an AutoAttack; raises Stopped."""
    if isinstance(entry, AutoAttackEval):
        return with_drop(run_autoattack(evaluator, entry, part))
    for note in evaluator.notes:
        evaluator.say(note)
    if evaluator.parts and isinstance(entry, SuiteEval):
        return run_group(evaluator, entry)
    return with_drop(evaluator.run(entry))


def with_drop(result: dict[str, Any]) -> dict[str, Any]:
    """Of an attack: by how much of the clean accuracy the robust one is lower, as papers write it: -0.29."""
    clean = result.get("components", {}).get(CLEAN, {}).get("top1", 0.0)
    if result["attack"] is None or clean == 0.0:
        return result
    return {**result, "relative_drop": (result["top1"] - clean) / clean}


def _say(log: RunLog, name: str, text: str) -> None:
    log.say(f"{name}: {text}")


def weights_of(entry: Entry, models: Mapping[str, object]) -> list[str]:
    """Names of the weights that `entry` is about, of those there are."""
    return [name for name in models if entry.weights in ("all", name)]


def result_name(result: Mapping[str, Any]) -> str:
    """The entry's name; results of averaged weights say so."""
    return str(result["name"]) if result["weights"] == "raw" else f"{result['name']}-{result['weights']}"


def store_result(folder: RunFolder, log: RunLog, name: str, result: dict[str, Any]) -> Path:
    """results/NAME.json and a log entry (rank 0); the path, which every rank knows."""
    path = _result_path(folder.results / f"{name}.json", result)
    log.write("eval", **{**result, "name": path.stem})
    if log.is_open:
        folder.results.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def keep_pictures(
    evaluator: Evaluator,
    entry: Entry,
    folder: RunFolder,
    result_path: Path,
    num_images: int,
    result: Mapping[str, Any],
) -> None:
    """gallery/NAME.safetensors beside results/NAME.json, by the same name."""
    if evaluator.parts:
        return
    path = folder.gallery / f"{result_path.stem}.safetensors"
    if isinstance(entry, AutoAttackEval):
        store_attack_gallery(evaluator, entry, path, num_images=num_images)
    else:
        store_gallery(evaluator, entry, path, num_images=num_images, evaluation=result["evaluation"])


def _result_path(path: Path, result: dict[str, Any]) -> Path:
    """`path`, or one with the evaluation's id where another evaluation of the same weights has that name already
    (other shards, a subset, another step size): no result takes the place of another."""
    try:
        there = json.loads(path.read_text())
        is_other = (
            there["weights_sha256"] == result["weights_sha256"]
            and there["evaluation"] != result["evaluation"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return path
    return path.with_name(f"{path.stem}-{result['evaluation'][:8]}.json") if is_other else path


def describe(name: str, result: dict[str, Any]) -> str:
    """One line: what was measured, the share that is right, its 95 % interval (Wilson's, unless the result names
    another kind), the number of images."""
    if "part" in result:
        return f"{name:<20} part {result['part']}, {result['num_images']} images: join the parts with `attack merge`"
    share, (low, high) = result["top1"], result["interval"]
    line = f"{name:<20} {100 * share:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]  n={result['num_images']}"
    return line + drop_text(result) + score_text(result) + suite_lines(result)


def drop_text(result: Mapping[str, Any]) -> str:
    """Behind it the relative drop of an attack, and whether the model was trained on another threat."""
    drop = f"  drop {100 * result['relative_drop']:.1f} %" if "relative_drop" in result else ""
    return drop + "  unseen threat" * bool(result.get("is_unseen_threat"))


def score_text(result: Mapping[str, Any]) -> str:
    """Behind it the calibration of the images as they are, of a cue conflict the shape bias with its interval."""
    text = ""
    found = result.get("calibration", {}).get(CLEAN)
    if found and result["attack"] is None:
        text += (
            f"  ECE {100 * found['ece_debiased']:.2f} %  NLL {found['nll']:.3f}  Brier {found['brier']:.3f}"
        )
    if bias := result.get("shape_bias"):
        decided = bias["shape"] + bias["texture"]
        text += f"\n{'':<20} shape bias {_bias_text(bias)} of {decided} decisions for shape or texture"
    return text


def _bias_text(bias: Mapping[str, Any]) -> str:
    if bias["value"] is None:
        return "unknown,"
    low, high = bias["interval"]
    return f"{100 * bias['value']:.2f} %  [{100 * low:.2f}, {100 * high:.2f}]"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The lines of several results."""
    return "\n".join(describe(result_name(r), r) for r in results)
