"""A suite with parts, such as ImageNet-C's 75: every part is an evaluation of its own in the ledger, the result is one.

Parts are judged in turn, and each goes on from its rows: a suite that was killed is finished by the same command, and
no image of it is judged twice. The parts show the same photographs, so the interval is over images, each with its mean
over the parts.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.suite import Suite
from data.suite_folders import manifest_of
from data.wnids import NUM_CLASSES
from engine.eval_fields import SuiteEval
from engine.evaluate import Evaluator
from engine.metrics.intervals import wilson_interval
from engine.metrics.mce import CORRUPTIONS, NUM_SEVERITIES, corruption_result
from engine.rows import CLEAN
from engine.scores import interval_over_images

_COUNTS = ("num_images", "num_correct", "num_top5", "num_rows", "num_bad")
_KEPT = ("weights_sha256", "contract", "attack", "seed", "precision")


def run_group(evaluator: Evaluator, entry: SuiteEval) -> dict[str, Any]:
    """Judges what is not in the ledger yet of every part, and returns one result with their sums; raises Stopped."""
    results: dict[str, dict[str, Any]] = {}
    total, done = sum(part.num_images for part in evaluator.parts), 0
    for part in evaluator.parts:
        name = part.suite.partition("/")[2]
        of_part = replace(
            evaluator,
            index=part.index,
            transform=part.transform,
            suite=part.suite,
            views=part.views,
            judged=part.judged,
            change=part.change,
            change_id=part.change_id,
            parts=(),
            notes=(),
            on_progress=_behind(evaluator.on_progress, done, total),
        )
        results[name] = of_part.run(entry)
        done += results[name]["num_images"]
    return _joined(evaluator, results)


def _behind(on_progress: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Progress over all parts."""
    return lambda done, _: on_progress(min(before + done, total), total)


def _joined(evaluator: Evaluator, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One result. Its id and data set are hashes over those of the parts."""
    first = next(iter(results.values()))
    suite = manifest_of(evaluator.suite)
    subset = first["suite"].partition("@")[0].partition("[")[2]
    shards = _hash([result["suite"] for result in results.values()], digits=64)
    counts: dict[str, Any] = {
        name: sum(result[name] for result in results.values()) for name in _COUNTS if name in first
    }
    shares = {
        "top1": counts["num_correct"] / counts["num_images"],
        "top5": counts["num_top5"] / counts["num_images"],
    }
    is_whole = not evaluator.missing
    return {
        "name": first["name"],
        "weights": first["weights"],
        "recipe": first["recipe"],
        "evaluation": _hash([result["evaluation"] for result in results.values()], digits=32),
        "suite": f"{suite.id}{'[' + subset if subset else ''}@{shards}",
        **{name: first[name] for name in _KEPT},
        **counts,
        **shares,
        "components": {
            CLEAN: {k: v for k, v in {**counts, **shares}.items() if k not in ("num_rows", "num_bad")}
        },
        "interval": list(_interval(evaluator, results, counts)),
        "parts": {name: _part(result) for name, result in results.items()},
        "missing": list(evaluator.missing),
        "metric": suite.metric,
        **_errors(suite, results, is_whole=is_whole, by_alexnet=len(evaluator.index.classes) == NUM_CLASSES),
        "overlap": {kind: list(alike) for kind, alike in evaluator.overlap.items() if kind in suite.kinds},
        **({"notes": list(evaluator.notes)} if evaluator.notes else {}),
    }


def _hash(words: Sequence[str], *, digits: int) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:digits]


def _part(result: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "evaluation",
        "suite",
        "num_images",
        "num_correct",
        "num_top5",
        "top1",
        "top5",
        "interval",
        "beside",
    )
    return {name: result[name] for name in names if name in result}


def _errors(
    suite: Suite, results: Mapping[str, Mapping[str, Any]], *, is_whole: bool, by_alexnet: bool
) -> dict[str, Any]:
    """Errors of each kind by severity; of a whole set their means, and what ImageNet-C's papers print. AlexNet's errors
    are of ImageNet: `by_alexnet` says whether these images are."""
    errors: dict[str, list[float]] = {}
    for name, result in results.items():
        errors.setdefault(name.partition("/")[0], []).append(1 - result["top1"])
    found: dict[str, Any] = {"errors": errors, "mean_error": None}
    if not is_whole:
        return found
    found["mean_error"] = _mean([_mean(row) for row in errors.values()])
    if by_alexnet and set(errors) == set(CORRUPTIONS) and suite.severities == NUM_SEVERITIES:
        result = corruption_result(errors)
        found["mce"] = result["mce"]
        found["corruption_errors"] = result["corruption_errors"]
    if len(suite.parts) > 1:
        found["groups"] = {
            group: _mean([_mean(errors[kind]) for kind in kinds]) for group, kinds in suite.parts.items()
        }
    if suite.severities:
        found["severities"] = [_mean([row[s] for row in errors.values()]) for s in range(suite.severities)]
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _interval(
    evaluator: Evaluator, results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]
) -> tuple[float, float]:
    """95 % of the share of right decisions; over images where the parts show the same ones."""
    over_all = wilson_interval(counts["num_correct"], counts["num_images"])
    if manifest_of(evaluator.suite).base is None:
        return over_all
    ids = [result["evaluation"] for result in results.values()]
    return interval_over_images(evaluator.ledger, ids) or over_all
