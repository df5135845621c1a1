"""Reads the run folders of robust_learning.py and says what they show."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table
from data.cue64 import SHIFTED
from data.index import load_index
from engine.ledger import read_ledger, wilson_interval

PGD: Final = "pgd20_linf8"
_Z: Final = 1.96


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says."""

    folder: Path
    results: dict[str, dict[str, Any]]
    costs: dict[str, dict[str, float]]
    num_images: int
    recipe: dict[str, Any]
    reports: list[dict[str, Any]]  # of log.jsonl

    def summary(self) -> dict[str, Any]:
        """For the JSON."""
        kept = ("num_images", "num_correct", "top1", "interval", "evaluation", "weights_sha256")
        curve = ("step", "loss", "top1", "distance", "agreement")
        return {
            "results": {name: {key: found[key] for key in kept} for name, found in self.results.items()},
            "costs": self.costs,
            "num_images": self.num_images,
            "epochs": self.recipe["run"]["epochs"],
            "precision": self.recipe["run"]["precision"],
            "warmup": self.recipe["objective"]["warmup"],
            "training": [{key: row[key] for key in curve if key in row} for row in self.reports],
        }

    def verdicts(self, what: str) -> dict[str, tuple[int, bool]]:
        """{image: (prediction on the clean image, right in this evaluation)}."""
        evaluation = self.results[what]["evaluation"]
        ledger = read_ledger(self.folder / "ledger", evaluation)
        rows = list(ledger.rows(evaluation))
        clean = {row.key: row.prediction for row in rows if row.component == "clean"}
        wrong = {row.key for row in rows if not row.correct}  # clean or attacked: robust is right in both
        assert len(clean) - len(wrong) == self.results[what]["num_correct"], "ledger and result disagree"
        return {key: (prediction, key not in wrong) for key, prediction in clean.items()}


def read_run(folder: Path, *, words: Sequence[str]) -> Run:
    """RuntimeError where the resolved recipe in the folder is not what the arm's words ask for."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for word in words:
        name, value = word.split("=", 1)
        field: Any = recipe
        for part in name.split("."):
            field = field[part]
        if field != yaml.safe_load(value):
            raise RuntimeError(f"{folder}: {name} is {field}, not {value}; remove the folder")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    files = (folder / "results").glob("*.json")
    return Run(
        folder=folder,
        results={path.stem: json.loads(path.read_text()) for path in sorted(files)},
        costs=json.loads((folder / "costs.json").read_text()),
        num_images=load_index(recipe["data"]["train"]).num_samples,
        recipe=recipe,
        reports=[entry for entry in log if entry["event"] == "train"],
    )


# ---- two runs


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Two runs on the same images: a share minus the other, and its 95 % interval over the images."""

    one: str
    other: str
    what: str
    gap: float
    interval: tuple[float, float]
    num_images: int

    def summary(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.interval
        ahead = self.one if low > 0 else self.other
        verdict = "not told apart" if low <= 0 <= high else f"{ahead} is ahead"
        if low == high:
            return f"- {self.what}: {self.one} and {self.other} are right on the same of {self.num_images} images."
        points = f"{100 * self.gap:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] on {self.num_images}"
        return f"- {self.what}: {self.one} minus {self.other} is {points} images: {verdict}."


def compare(found: Mapping[str, Run], pair: tuple[str, str], what: str) -> Gap:
    """The subset of an attack is the same for every model; with fewer images on one side those of both count."""
    one, other = (found[name].verdicts(what) for name in pair)
    keys = sorted(one.keys() & other.keys())
    only = sum(one[key][1] and not other[key][1] for key in keys) / len(keys)
    only_other = sum(other[key][1] and not one[key][1] for key in keys) / len(keys)
    # A difference of matched shares: its variance follows from the images that the two judge differently.
    gap = only - only_other
    half = _Z * ((only + only_other - gap**2) / len(keys)) ** 0.5
    interval = (gap - half, gap + half)
    return Gap(one=pair[0], other=pair[1], what=what, gap=gap, interval=interval, num_images=len(keys))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often a student's first choice is its teacher's, on all clean images and where the teacher errs."""

    student: str
    teacher: str
    num_same: int
    num_images: int
    num_same_errors: int
    num_errors: int

    def summary(self) -> dict[str, Any]:
        return asdict(self)

    def row(self) -> list[str]:
        shares = ((self.num_same, self.num_images), (self.num_same_errors, self.num_errors))
        return [self.student, self.teacher, *(_percent(*share) for share in shares)]


def agreement(found: Mapping[str, Run], *, student: str, teacher: str) -> Agreement:
    ours, theirs = (found[name].verdicts("clean") for name in (student, teacher))
    same = {key for key, (prediction, _) in theirs.items() if ours[key][0] == prediction}
    errors = {key for key, (_, right) in theirs.items() if not right}
    return Agreement(
        student=student,
        teacher=teacher,
        num_same=len(same),
        num_images=len(theirs),
        num_same_errors=len(same & errors),
        num_errors=len(errors),
    )


# ---- the report


def _percent(num: int, num_images: int) -> str:
    if not num_images:
        return "none"
    low, high = wilson_interval(num, num_images)
    return f"{100 * num / num_images:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {num_images}"


def _row(name: str, run: Run) -> list[str]:
    judged = run.costs["eval"]["cpu_s"] + run.costs["attack"]["cpu_s"]
    main = [
        _percent(run.results[what]["num_correct"], run.results[what]["num_images"]) for what in ("clean", PGD)
    ]
    shifted = [f"{100 * run.results[f'cue64-{suite}']['top1']:.1f}" for suite in SHIFTED]
    size = f"{run.num_images} x {run.recipe['run']['epochs']}"
    return [name, size, f"{run.costs['train']['cpu_s']:.0f} + {judged:.0f}", *main, *shifted]


def _by_epoch(run: Run) -> list[str]:
    """The last report of each epoch; later radii are harder where there is a warm-up."""
    updates = run.num_images // run.recipe["run"]["batch_size"]
    ends = [updates * epoch for epoch in range(1, run.recipe["run"]["epochs"] + 1)]
    last = [
        max((row for row in run.reports if row["step"] <= end), key=lambda row: row["step"]) for end in ends
    ]
    return [f"{100 * row['top1']:.0f}" for row in last]


def _starts(found: Mapping[str, Run]) -> list[str]:
    """What the adversarial runs say of their first radius: recipe, and distance of the first images attacked."""
    lines = []
    for name, run in found.items():
        if run.recipe["objective"]["kind"] == "adversarial":
            warmup, first = run.recipe["objective"]["warmup"], run.reports[0]
            points = [[epoch, f"{255 * eps:g}/255"] for epoch, eps in warmup["eps"]] if warmup else "null"
            distance = f"{255 * first['distance']:.1f}/255 after {first['step']} updates"
            curve = (
                f"training top-1 on attacked images at the end of each epoch {', '.join(_by_epoch(run))} %"
            )
            lines.append(
                f"- {name}: objective.warmup {points}; mean distance of the attacked images {distance}; {curve}."
            )
    return lines


def report(
    found: Mapping[str, Run], gaps: Sequence[Gap], same: Sequence[Agreement], *, missing: Sequence[str]
) -> list[str]:
    """Lines of the Markdown result."""
    first = next(iter(found.values()))
    used = sum(cost["cpu_s"] for run in found.values() for cost in run.costs.values())
    return [
        f"cue64 at 64 px, correlation 0.5, batch 64, trained in {first.recipe['run']['precision']}, one seed, one "
        f"thread on shared cores; {used / 60:.0f} CPU-minutes in all.",
        "Verdicts are float32, by `eval` and `attack`: PGD-20 at eps 8/255 (linf), step 2/255, on a fixed subset. "
        "Per cent with 95 % intervals;",
        "robust: right before and after the attack. Students are half as wide and see a twentieth of the teachers' "
        "images; taught: 0.9 of",
        "the loss is the divergence from the teacher at temperature 2. Nothing was tuned on these numbers: with and "
        "without warm-up the",
        "learning rate and the length are the recipe's, which was written with one; the task is generated, and small.",
        *([f"Not run: {', '.join(missing)}."] if missing else []),
        "",
        *markdown_table(
            ["arm", "images x epochs", "CPU-s train + judge", "clean", PGD, *SHIFTED],
            [_row(name, run) for name, run in found.items()],
        ),
        "",
        "The radius of adversarial training, from the resolved recipes and logs:",
        "",
        *_starts(found),
        "",
        "What is seen, image by image; intervals are over the images, the spread over seeds is not in them:",
        "",
        *map(str, gaps),
        "",
        "Same first choice on the clean images, in per cent, and where the teacher is wrong:",
        "",
        *markdown_table(["student", "teacher", "all", "teacher wrong"], [one.row() for one in same]),
    ]
