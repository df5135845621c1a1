"""`make quickstart`: real digits and shifted copies to shards, four trainings, a report, and a run on XLA.

`python -m engine.quickstart --task cue64` is the second task: one CNN that learns where texture tells nothing and one
that learns where it nearly always tells the label, judged on the same cue conflicts and other shifts.

Everything goes through the launchers, as a user would call them. A phase whose result is there is reused, one that
was interrupted goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.children import ROOT, Children, Interrupted
from engine.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from engine.folder import RunFolder

FOLDER = Path("runs/quickstart")
RECIPES = ("vit_adv", "vit_clean", "cnn_adv", "cnn_clean")  # the longest first, two at a time
SHOWN = ("cnn_clean", "cnn_adv", "vit_clean", "vit_adv")
CUES = Path("runs/quickstart_cue64")
CUE_SIZE = ("--num-classes", 4, "--num-train", 6000)
CORRELATIONS = {
    "shape": 0.0,
    "texture": 0.95,
}  # what a model has to look at, and of texture and label in its training
PARALLEL = 2
XLA_STEPS = 44
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One run of a task: a recipe with some fields changed."""

    name: str
    recipe: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a quickstart does, in this order."""

    folder: Path
    make_shards: Callable[[Children], None]
    trainings: tuple[Training, ...]
    shown: tuple[str, ...]  # in the report
    finish: Callable[[Children], None] = lambda children: None
    again: str  # the command that goes on


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of the first phase that failed, 130 after Ctrl-C, or 0."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.quickstart", description="a first run, end to end"
    )
    parser.add_argument("--task", choices=sorted(TASKS), default="digits", help="default: %(default)s")
    task = TASKS[parser.parse_args(words).task]
    start = time.perf_counter()
    with Children() as children:
        try:
            run_phases(children, task)
        except Interrupted:
            children.say("quickstart", f"stopped; `{task.again}` goes on from here")
            return EXIT_INTERRUPTED
        except subprocess.CalledProcessError as error:
            print(
                f"quickstart stopped: {' '.join(error.cmd)} ended with code {error.returncode}",
                file=sys.stderr,
            )
            return int(error.returncode)
        seconds = time.perf_counter() - start
        children.say(
            "quickstart", f"done in {seconds:.0f} s; open {task.folder / 'report.html'} in a browser"
        )
    return 0


def run_phases(children: Children, task: Task) -> None:
    """Shards, trainings with their evaluations, the report, and what else the task has."""
    # Imported here: torch takes seconds, and a Ctrl-C in these must not end in a traceback.
    from bits.processor import has_bf16

    precision = "bf16" if has_bf16() else "float32"
    task.make_shards(children)
    children.say("quickstart", f"{len(task.trainings)} models in {precision}, {PARALLEL} at a time")
    with ThreadPoolExecutor(PARALLEL) as pool:
        jobs = [pool.submit(train, children, task, training, precision) for training in task.trainings]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    folders = [task.folder / name for name in task.shown]
    children.launch("gpu", "report", "report", *folders, "--output", task.folder / "report.html")
    task.finish(children)


def make_digits(children: Children) -> None:
    """Images, then shards; each folder appears whole or not at all, so what is there can be used."""
    images, shards = FOLDER / "images", FOLDER / "shards"
    if (ROOT / images).exists():
        children.say("quickstart", f"reusing {images}")
    else:
        children.launch("gpu", "digits", "shards", "digits", images)
    children.launch("gpu", "shards", "shards", "make", images, shards, "--each", "--samples-per-shard", 500)


def make_cues(children: Children) -> None:
    """Scenes for each correlation. What is whole is used; the tests of all models are those of the first."""
    for name, correlation in CORRELATIONS.items():
        num_val = ("--num-val", 500 if name == "shape" else 10)
        size = (*CUE_SIZE, *num_val, "--correlation", correlation)
        children.launch("gpu", "shards", "shards", "make", "cue64", CUES / f"shards_{name}", *size)


def train(children: Children, task: Task, training: Training, precision: str) -> None:
    """One training with its evaluations; goes on where an interrupted one stopped."""
    words = (f"run.precision={precision}", *training.words)
    output = task.folder / training.name
    if is_finished(run_folder(output), load_recipe(ROOT / training.recipe, words)):
        children.say("quickstart", f"reusing {output}: trained and evaluated")
        return
    children.launch("gpu", training.name, "train", training.recipe, *words, "--output", output)


def run_folder(output: Path) -> "RunFolder":
    from engine.folder import RunFolder  # imports torch

    return RunFolder(ROOT / output)


def is_finished(folder: "RunFolder", recipe: Recipe) -> bool:
    """Whether `folder` holds this very recipe, evaluations included, trained to its end."""
    try:
        done = json.loads((folder.root / "exit.json").read_text())["exit_code"] == 0
        return bool(done) and folder.recipe.read_text() == recipe.resolved_yaml()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def train_on_xla(children: Children) -> None:
    """The CNN's adversarial recipe for two epochs through torch_xla (PJRT_DEVICE=CPU unless set)."""
    from engine.log import read_log  # imports torch

    output = FOLDER / "xla_cnn_adv"
    evals = "evals=[{attack: pgd, norm: linf, eps: 16/255, step_size: 2/255, steps: 20, num_images: 64}]"
    words = (f"run.max_steps={XLA_STEPS}", "run.report_every=11", evals)
    path = "recipes/quickstart/cnn_adv.yaml"
    if is_finished(run_folder(output), load_recipe(ROOT / path, words)):
        children.say("quickstart", f"reusing {output}: trained and evaluated")
    else:
        children.launch("xla", "xla", "train", path, *words, "--output", output)
    begun, trained = last_training(read_log(ROOT / output / "log.jsonl"))
    children.say("quickstart", describe_compiles(trained, begun=begun))


def last_training(log: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """The reports of the newest start that trained, and the step it began at: counters are those of a process."""
    begun, reports = 0, list[dict[str, Any]]()
    found = begun, reports
    for entry in log:
        if entry["event"] == "start":
            begun, reports = entry["step"], []
        elif entry["event"] == "train":
            reports.append(entry)
            found = begun, reports
    return found


def describe_compiles(entries: list[dict[str, Any]], *, begun: int = 0) -> str:
    """Compile time apart from step time, from the counters in the log of one process, which began at step `begun`."""
    last = entries[-1]
    first = next((entry for entry in entries if entry["step"] >= begun + 2), last)
    late = last["compiles"] - first["compiles"]
    return (
        f"XLA: {last['compiles']} graphs compiled in {last['compile_ms'] / 1000:.1f} s, {late} of them after the "
        f"second update; {1000 * last['step_s']:.0f} ms a step since, {last['fallbacks']} fallbacks to the host"
    )


def _cue_words(name: str) -> tuple[str, ...]:
    tests = CUES / "shards_shape"
    own = CUES / f"shards_{name}" / "train"
    return (f"data.train={own}", f"data.val={tests / 'val'}", f"data.suites={tests}")


TASKS = {
    "digits": Task(
        folder=FOLDER,
        make_shards=make_digits,
        trainings=tuple(Training(name=name, recipe=f"recipes/quickstart/{name}.yaml") for name in RECIPES),
        shown=SHOWN,
        finish=train_on_xla,
        again="make quickstart",
    ),
    "cue64": Task(
        folder=CUES,
        make_shards=make_cues,
        trainings=tuple(
            Training(name=f"cnn_{name}", recipe="recipes/cue64/cnn_clean.yaml", words=_cue_words(name))
            for name in CORRELATIONS
        ),
        shown=tuple(f"cnn_{name}" for name in CORRELATIONS),
        again="python -m engine.quickstart --task cue64",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
