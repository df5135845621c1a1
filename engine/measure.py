"""Runs the evaluations of a recipe on a model, writes results/NAME.json and prints one line each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bits.checkpoint import write_atomic
from bits.environment import Environment
from engine.build import eval_transform, open_shards
from engine.evaluate import Evaluator
from engine.folder import RunFolder
from engine.log import RunLog
from engine.recipe import Recipe
from engine.verdict import weights_hash


def measure(
    env: Environment,
    recipe: Recipe,
    folder: RunFolder,
    model: nn.Module,
    log: RunLog,
    stop_asked: Callable[[], bool],
    epoch: int | None,
) -> list[dict[str, Any]]:
    """The recipe's evaluations due after `epoch` epochs (None: the end of the run, all of them).

    Raises Stopped between two batches after a stop request; called again, it goes on from the ledger.
    """
    entries = [e for e in recipe.evals if epoch is None or (e.every and epoch % e.every == 0)]
    if not entries:
        return []
    evaluator = replace(make_evaluator(env, recipe, folder.ledger, model), stop_asked=stop_asked)
    results = []
    for entry in entries:
        result = evaluator.run(entry, batch_size=entry.batch_size or recipe.run.batch_size)
        results.append(result)
        name = entry.name if epoch is None else f"{entry.name}-epoch{epoch}"
        store_result(folder, log, name, result)
        log.say(describe(name, result))
    return results


def make_evaluator(env: Environment, recipe: Recipe, ledger: Path, model: nn.Module) -> Evaluator:
    """Evaluates `model` on data.val as the recipe says."""
    assert recipe.data.val is not None, "a recipe with evals has data.val"
    return Evaluator(
        env=env,
        model=model,
        weights_sha256=weights_hash(model.state_dict()),
        index=open_shards(recipe.data.val, field="data.val", num_classes=None),
        transform=eval_transform(recipe),
        image_size=recipe.data.image_size,
        num_workers=recipe.data.num_workers,
        seed=recipe.run.seed,
        ledger=ledger,
        recipe=recipe.hash,
    )


def store_result(folder: RunFolder, log: RunLog, name: str, result: dict[str, Any]) -> None:
    """results/NAME.json and a log entry (rank 0)."""
    log.write("eval", **{**result, "name": name})
    if log.is_open:
        folder.results.mkdir(parents=True, exist_ok=True)
        path = _result_path(folder.results / f"{name}.json", result)
        write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())


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
    """One line: what was measured, the share that is right, its 95 % Wilson interval, the number of images."""
    share, (low, high) = result["top1"], result["interval"]
    return f"{name:<16} {100 * share:6.2f} %  [{100 * low:.2f}, {100 * high:.2f}]  n={result['num_images']}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The lines of several results."""
    return "\n".join(describe(r["name"], r) for r in results)
