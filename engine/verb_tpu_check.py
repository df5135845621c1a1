"""`tpu-check`: compiles the train step of a recipe for a TPU topology, without a TPU, and says what it would need.

One step is one micro-batch, the one that ends an update. With --output each row is a file of its own, written when
it is done: a stopped `--all` goes on where it was, and its table is valid at any time.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.cli import Launch
from engine.failure import EXIT_USER_ERROR
from engine.launch import check_torch_xla
from engine.passes import passes_of
from engine.published import PATH as PUBLISHED
from engine.recipe import Recipe, load_recipe
from engine.tpu.environment import PINS
from engine.tpu.facts import Facts, read
from engine.tpu.job import ROOT, Order, compile_step
from engine.tpu.table import Pending, markdown, show
from engine.tpu.topology import find_topology
from engine.variants import FILE as VARIANTS

PACKAGES = ("bits", "data", "engine", "models", "robust")
OUTPUT = Path("runs/tpu-check")  # of --all


class Row(NamedTuple):
    """One recipe on one topology."""

    order: Order
    recipe: Recipe

    @property
    def file(self) -> str:
        place = self.order.topology.name.replace(":", "-")
        return f"{self.recipe.name}.{place}.b{self.order.batch_per_device}.json"

    @property
    def fingerprint(self) -> str:
        """Of all that the row's answer follows from."""
        made_of = [self.recipe.resolved_yaml(), self.order.topology.name, self.order.topology.config, PINS]
        return hashlib.sha256(json.dumps([*made_of, _sources()]).encode()).hexdigest()[:20]


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """The answers; exit code 2 when a step does not compile or does not fit."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    check_torch_xla()
    rows = list(_rows(arguments))
    folder: Path | None = arguments.output or (OUTPUT if arguments.all else None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    answers: list[dict[str, Any]] = []
    facts: list[Facts | Pending] = [_pending(row, "not done yet") for row in rows]
    for number, row in enumerate(rows):
        answer, facts[number] = _do(row, folder, is_alone=len(rows) == 1)
        answers.append(answer)
        if folder is not None:
            _write(folder / "table.md", "\n".join(markdown(facts)) + "\n")
    show(facts)
    is_fine = all(isinstance(each, Facts) and each.verdict == "fits" for each in facts)
    return {"exit_code": 0 if is_fine else EXIT_USER_ERROR, "rows": answers}


def _rows(arguments: argparse.Namespace) -> Iterator[Row]:
    topologies = [find_topology(name) for name in arguments.topology.split(",")]
    if arguments.batch_per_device < 1 or arguments.timeout <= 0:
        raise ValueError("--batch-per-device and --timeout are above 0")
    for path in _recipes(arguments):
        for topology in topologies:
            batch = arguments.batch_per_device
            words = [*arguments.overrides, f"run.batch_size={batch * topology.num_devices}"]
            order = Order(
                recipe=path.absolute(),
                words=words,
                topology=topology,
                batch_per_device=batch,
                timeout_s=arguments.timeout,
            )
            yield Row(order, load_recipe(path, words))


def _recipes(arguments: argparse.Namespace) -> Sequence[Path]:
    path: Path | None = arguments.recipe
    if not arguments.all:
        if path is None:
            raise ValueError("tpu-check needs a recipe; or say --all, for every recipe of the toolkit")
        return [path]
    folder = ROOT / "recipes" if path is None else path
    found = sorted(p for p in folder.glob("**/*.yaml") if p != PUBLISHED and p.name != VARIANTS)
    # What only serves as a base names itself so.
    found = [p for p in found if not p.stem.startswith("base")]
    if not found:
        raise ValueError(f"--all: no recipes in {folder}; give a folder of recipes, or leave it out")
    return found


def _do(row: Row, folder: Path | None, *, is_alone: bool) -> tuple[dict[str, Any], Facts | Pending]:
    """The answer of a row, from its file if that is still true; a mistake ends a check of one row alone."""
    path = None if folder is None else folder / row.file
    answer = None if path is None else _found(path, row)
    if answer is None:
        print(f"{row.recipe.name} for {row.order.topology.name}", flush=True)
        try:
            answer = compile_step(row.order)
        except ValueError as error:
            if is_alone:
                raise
            print(f"  {error}", flush=True)
            return {"name": row.recipe.name, "ok": False, "error": str(error)}, _pending(row, str(error))
        answer |= {
            "name": row.recipe.name,
            "recipe": str(row.order.recipe.relative_to(ROOT))
            if row.order.recipe.is_relative_to(ROOT)
            else str(row.order.recipe),
            "words": list(row.order.words),
            "num_classes": row.recipe.data.num_classes or 1000,
            "fingerprint": row.fingerprint,
        }
        if path is not None:
            _write(path, json.dumps(answer, indent=1) + "\n")
    passes = passes_of(row.recipe.objective, recompute=row.recipe.model.recompute)
    return answer, read(answer, recipe=row.recipe, passes=passes, name=row.recipe.name)


def _found(path: Path, row: Row) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return answer if answer.get("fingerprint") == row.fingerprint else None


def _pending(row: Row, reason: str) -> Pending:
    return Pending(row.recipe.name, row.order.topology.name, row.order.batch_per_device, reason)


def _write(path: Path, text: str) -> None:
    made = path.with_name(f"{path.name}.tmp")
    made.write_text(text)
    made.replace(path)


@cache
def _sources() -> str:
    """Hash of the code that makes a step, as it was when this process first asked."""
    paths = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
