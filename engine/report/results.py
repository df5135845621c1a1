"""results/*.json against the ledger: only what both agree on becomes a number of the report."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open

from data.suite_folders import manifest_of
from engine.folder import RunFolder
from engine.ledger import Counts, Ledger, Summary, read_ledger
from engine.metrics.calibration import Calibration
from engine.metrics.shape_bias import ShapeBias
from engine.report.facts import RAW, Evaluation, Pictures, Plain, Share, Verdicts
from engine.report.parts import parts_summary
from engine.sampling import sequential_interval
from engine.scores import calibrations, interval_over_images, shape_bias_of

CLEAN = "clean"
ATTACKED = "attacked"  # after all components
_SUFFIXES = re.compile(r"(?:-(?P<weights>ema))?(?:-epoch(?P<epoch>\d+))?(?:-[0-9a-f]{8})?")
_SUITE = re.compile(r"(?P<id>[^@\[]+)(?:\[(?P<subset>\d+)(?:-(?P<list>[0-9a-f]{8}))?\])?@(?P<dataset>.+)")
# Settings that older results leave out, as they were then.
_ATTACK_DEFAULTS: Mapping[str, JsonValue] = {"random_start": True, "restarts": 1, "best_iterate": False}
_PARTS = ("weights_sha256", "suite", "contract", "attack", "seed", "precision")


class ResultFile(BaseModel):
    """What a results/*.json must hold; older and newer fields beside it are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    name: str
    evaluation: str
    weights: str | None = None  # absent before there were averaged weights
    recipe: str | None = None  # absent in early results
    weights_sha256: str
    suite: str
    contract: str
    attack: dict[str, JsonValue] | None
    seed: int
    precision: str
    num_rows: int
    num_images: int
    num_correct: int
    num_top5: int
    components: dict[str, dict[str, float]]
    parts: dict[str, dict[str, JsonValue]] | None = None  # of a suite with parts
    mce: float | None = None  # where a whole ImageNet-C was judged
    num_total: int | None = None  # of a sample whose interval decided when to end: what it was drawn from


class Results(NamedTuple):
    evaluations: tuple[Evaluation, ...]
    warnings: tuple[str, ...]


def read_results(folder: RunFolder) -> Results:
    """Every result that its ledger bears out; one warning for each that it does not."""
    evaluations: list[Evaluation] = []
    warnings: list[str] = []
    for path in sorted(folder.results.glob("*.json")):
        try:
            result = _read(path)
            evaluation, remarks = _verified(folder, path.stem, result)
            evaluations.append(evaluation)
            warnings += remarks
        except (ValueError, OSError) as error:
            warnings.append(f"results/{path.name} is not shown: {' '.join(str(error).split())}")
    return Results(tuple(evaluations), tuple(warnings))


def _read(path: Path) -> ResultFile:
    try:
        return ResultFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"not the JSON of a result ({where + ': ' if where else ''}{first['msg']})"
        ) from None


def _verified(folder: RunFolder, stem: str, result: ResultFile) -> tuple[Evaluation, list[str]]:
    """The evaluation with the ledger's counts. ValueError where ledger and file contradict each other."""
    suffixes = _SUFFIXES.fullmatch(stem.removeprefix(result.name)) if stem.startswith(result.name) else None
    if suffixes is None:
        raise ValueError(f"it is about {result.name}; a file of that name was expected")
    suite = _SUITE.fullmatch(result.suite)
    if suite is None:
        raise ValueError(f"suite {result.suite!r} is not SUITE@DATASET")
    if result.parts is not None:
        counts = parts_summary(folder.ledger, result.parts, evaluation=result.evaluation)
        _compare_component(CLEAN, result.model_dump(), counts)
        found = _evaluation(stem, result, suite, suffixes, counts, counts, None, None, None)
        return _with_errors(found, folder, result), []
    book = read_ledger(folder.ledger, result.evaluation)
    summary = book.summary(result.evaluation)
    _compare(result, summary, book.evaluations().get(result.evaluation))
    pictures, remarks = _pictures(folder, stem, result, book)
    scores = calibrations(book, result.evaluation, [CLEAN]) if result.attack is None else {}
    bias = shape_bias_of(book, result.evaluation) if result.attack is None else None
    book.close()
    before = summary["components"].get(CLEAN, summary)
    found = _evaluation(stem, result, suite, suffixes, summary, before, pictures, scores.get(CLEAN), bias)
    return found, remarks


def _evaluation(
    stem: str,
    result: ResultFile,
    suite: re.Match[str],
    suffixes: re.Match[str],
    summary: Counts,
    before: Counts,
    pictures: Pictures | None,
    calibration: Calibration | None,
    shape_bias: ShapeBias | None,
) -> Evaluation:
    return Evaluation(
        name=result.name,
        file=stem,
        weights=result.weights or suffixes["weights"] or RAW,
        epoch=int(suffixes["epoch"]) if suffixes["epoch"] else None,
        id=result.evaluation,
        recipe=result.recipe or "",
        weights_sha256=result.weights_sha256,
        suite=suite["id"],
        subset=int(suite["subset"]) if suite["subset"] else None,
        dataset=f"{suite['list']}-{suite['dataset']}" if suite["list"] else suite["dataset"],
        contract=result.contract,
        attack=_settings(result.attack),
        seed=result.seed,
        precision=result.precision,
        share=_share(summary, result),
        before=Share(before["num_correct"], before["num_images"]),
        pictures=pictures,
        calibration=calibration,
        shape_bias=shape_bias,
    )


def _with_errors(found: Evaluation, folder: RunFolder, result: ResultFile) -> Evaluation:
    """The errors of each kind by severity, and the interval over images."""
    assert result.parts is not None, "asked for the parts of a set without"
    errors: dict[str, list[float]] = {}
    for name, part in result.parts.items():
        errors.setdefault(name.partition("/")[0], []).append(1 - float(str(part["top1"])))
    ends = None
    if manifest_of(found.suite).base is not None:
        ids = [str(part["evaluation"]) for part in result.parts.values()]
        ends = interval_over_images(folder.ledger, ids)
    share = found.share._replace(ends=ends)
    return replace(found, errors=errors, mce=result.mce, share=share, before=share)


def _share(counts: Counts, result: ResultFile) -> Share:
    right, num = counts["num_correct"], counts["num_images"]
    if result.num_total is None:
        return Share(right, num)
    low, high = sequential_interval(right, num, result.num_total)
    return Share(right, num, (low, high))


def _settings(attack: Mapping[str, JsonValue] | None) -> tuple[tuple[str, Plain], ...]:
    if not attack:
        return ()
    defaults = _ATTACK_DEFAULTS if attack.get("attack", "pgd") == "pgd" else {}
    return tuple(sorted((name, _plain(value)) for name, value in {**defaults, **attack}.items()))


def _plain(value: JsonValue) -> Plain:
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _compare(result: ResultFile, summary: Summary, description: Mapping[str, object] | None) -> None:
    """ValueError when the file says anything else than the ledger."""
    told, counted = result.model_dump(), dict(summary)
    for name in ("num_images", "num_correct", "num_rows", "num_top5"):
        if told[name] != counted[name]:
            raise ValueError(f"it says {name} {told[name]}, the ledger's rows say {counted[name]}")
    for component, counts in summary["components"].items():
        _compare_component(component, result.components.get(component), counts)
    if description is None:
        raise ValueError(f"the ledger does not say what evaluation {result.evaluation} is")
    for name in _PARTS:
        if told[name] != description.get(name):
            raise ValueError(
                f"it says {name} {json.dumps(told[name])}, the ledger says {json.dumps(description.get(name))}"
            )


def _compare_component(component: str, told: Mapping[str, float] | None, counts: Counts) -> None:
    if told is None or any(told.get(name) != counts[name] for name in ("num_images", "num_correct")):  # type: ignore[literal-required]
        raise ValueError(f"its counts of {component} are not those of the ledger's rows")


def _pictures(
    folder: RunFolder, stem: str, result: ResultFile, book: Ledger
) -> tuple[Pictures | None, list[str]]:
    """The pictures kept of this evaluation, or None; why, where there are some that cannot be shown."""
    path = folder.root / "gallery" / f"{stem}.safetensors"
    if not path.is_file():
        return None, []
    try:
        return _read_pictures(path, result, book), []
    except (ValueError, OSError, SafetensorError, TypeError) as error:
        return None, [f"gallery/{path.name} is not shown: {' '.join(str(error).split())}"]


def _read_pictures(path: Path, result: ResultFile, book: Ledger) -> Pictures:
    with safe_open(path, framework="numpy") as file:
        facts = file.metadata() or {}
        if facts.get("evaluation") != result.evaluation:
            raise ValueError("its pictures are of another evaluation than the result of that name")
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = tuple(map(str, json.loads(facts.get("names", "[]"))))
    shape = (len(names), 3)
    if any(array.ndim != 4 or array.shape[:2] != shape for array in arrays.values()) or "image" not in arrays:
        raise ValueError(f"it does not hold one image of 3 channels for each of its {len(names)} names")
    attacked = arrays.get("attacked")
    component = _component(book, result, is_attack=attacked is not None)
    return Pictures(
        names=names,
        image=arrays["image"].astype(np.uint8, copy=False),
        attacked=None if attacked is None else attacked.astype(np.float32, copy=False),
        verdicts=tuple(_verdicts(book, result.evaluation, names)),
        component=component,
    )


def _component(book: Ledger, result: ResultFile, *, is_attack: bool) -> str:
    parts = list(book.summary(result.evaluation)["components"])
    wanted = [name for name in parts if (name != CLEAN) == is_attack]
    return ATTACKED if len(wanted) > 1 else (wanted or parts)[0]


def _verdicts(book: Ledger, evaluation: str, names: tuple[str, ...]) -> Iterator[Verdicts]:
    wanted = set(names)
    labels: dict[str, int] = {}
    predictions: dict[str, dict[str, int]] = {name: {} for name in names}
    for row in book.rows(evaluation):
        if row.key in wanted:
            labels[row.key] = row.label
            predictions[row.key][row.component] = row.prediction
            # Components in turn: the one that breaks an image has the last word on it.
            if not row.correct or ATTACKED not in predictions[row.key]:
                predictions[row.key][ATTACKED] = row.prediction
    if missing := [name for name in names if name not in labels]:
        raise ValueError(f"the ledger has no verdict on its image {missing[0]}")
    return (Verdicts(label=labels[name], predictions=predictions[name]) for name in names)
