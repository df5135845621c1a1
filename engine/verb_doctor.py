"""`doctor`: what is installed, what a run here would use and why, a self-test, and whether a recipe could run.

The first lines need no torch: a broken installation is what somebody may want explained.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.cli import Launch
from engine.failure import EXIT_USER_ERROR
from engine.finding import Finding
from engine.installed import is_missing, look_at_packages
from engine.machine import look_at_machine, look_at_storage, look_for_traps
from engine.recipe import Recipe, load_recipe

MARKS = {"": "    ", "ok": "ok  ", "advice": "note", "failed": "FAIL"}


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """The findings; exit code 2 when one of them would stop a run."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    if arguments.backends is not None:
        return _compare(arguments)
    if arguments.steps is not None:
        raise ValueError(f"--steps {arguments.steps}: these are of a comparison; add --backends cpu,xla")
    recipe = None if arguments.recipe is None else _load(arguments)
    return _sum_up(show(examine(launch, recipe, with_self_test=not arguments.no_self_test)))


def _compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a recipe on several backends; which one this process was started for does not matter."""
    if arguments.recipe is None:
        raise ValueError(
            f"--backends {arguments.backends} compares how a recipe trains; write `doctor RECIPE.yaml --backends "
            f"{arguments.backends}`"
        )
    _load(arguments)
    parity = import_module("engine.parity.doctor").open_parity(
        arguments.recipe, arguments.overrides, arguments.backends, arguments.steps
    )
    found = _sum_up(show(parity.examine()))
    return {**found, "parity": parity.table}


def _sum_up(shown: Iterable[Finding]) -> dict[str, Any]:
    findings = list(shown)
    wrong = [f for f in findings if f.state == "failed"]
    advice = sum(f.state == "advice" for f in findings)
    print()
    print("all is well" if not wrong and not advice else f"{len(wrong)} failed, {advice} to note")
    return {
        "exit_code": EXIT_USER_ERROR if wrong else 0,
        "findings": [f._asdict() for f in findings],
        "failed": [f"{f.section}: {f.name}" for f in wrong],
    }


def _load(arguments: argparse.Namespace) -> Recipe:
    path: Path = arguments.recipe
    if "=" in path.name and not path.exists():
        raise ValueError(f"{path}: an override needs a recipe; write `doctor RECIPE.yaml {path}`")
    return load_recipe(path, arguments.overrides)


def examine(launch: Launch, recipe: Recipe | None, *, with_self_test: bool) -> Iterator[Finding]:
    """All findings, one after the other, so that a slow one keeps none back."""
    packages = look_at_packages()
    yield from packages
    yield from look_at_machine()
    folder = Path("runs")
    if recipe is not None:
        folder = Path(recipe.run.output or folder / recipe.name)
    yield from look_at_storage(folder)
    yield from look_for_traps()
    missing = [f.name for f in packages if f.state == "failed" and is_missing(packages, f.name)]
    if missing:
        text = f"not looked at: {', '.join(missing)} missing; run `pip install -e .` first"
        yield Finding("devices", "all", text, "advice")
        return
    outlook = import_module("engine.outlook")
    yield from outlook.look_at_devices()
    yield outlook.look_at_decoding()
    yield from outlook.look_ahead(launch)
    if recipe is not None:
        yield from import_module("engine.recipe_check").check_recipe(recipe, launch, folder)
    if with_self_test:
        yield from _self_test(launch, recipe)


def _self_test(launch: Launch, recipe: Recipe | None) -> Iterator[Finding]:
    if max(launch.world_size or 1, int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        text = "not tried: it runs in one process, and several were started; start it alone"
        yield Finding("self-test", "device", text, "advice")
        return
    precision = "float32" if recipe is None else recipe.run.precision
    selftest = import_module("engine.selftest")
    yield from selftest.self_test(launch, precision=precision, limit_s=selftest.LIMIT_S)


def show(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Passes findings on, printed under the heading of their section."""
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            print(f"\n{section}", flush=True)
        print(f"  {MARKS[finding.state]}  {finding.name:<20} {finding.text}", flush=True)
        yield finding
