"""A plan as a table: with rich on a terminal, else as plain lines."""

import sys

from engine.machine import GIB
from engine.planner import Plan

MIB = 1 << 20


def rows(plan: Plan) -> list[tuple[str, str]]:
    """Name and value of what is known."""
    found = [
        ("parameters", f"{plan.parameters:,}"),
        ("images of data.train", _number(plan.num_images)),
        ("updates", _number(plan.updates)),
        ("images trained on", _number(plan.images)),
        (
            "passes per image",
            f"{plan.forward} forward, {plan.input_only} backward to the image, {plan.full} full backward",
        ),
        *_teacher(plan),
        ("forward passes of evaluations", _number(plan.eval_forwards)),
        ("checkpoint", _bytes(plan.checkpoint_bytes)),
        ("disk for checkpoints", _bytes(plan.disk_bytes)),
    ]
    if plan.step_images_per_s is not None:
        found += [
            ("measured on", f"{plan.backend}, {plan.measured_batch} images an update of a process"),
            ("images/s of updates", _rate(plan.step_images_per_s)),
            ("images/s of the loader", _rate(plan.data_images_per_s)),
            ("hours of training", _hours(plan.train_hours)),
            ("hours of evaluations", _hours(plan.eval_hours)),
            (f"peak memory ({plan.memory_of})", _bytes(plan.memory_bytes)),
        ]
    return found


def _teacher(plan: Plan) -> list[tuple[str, str]]:
    if not plan.teacher:
        return []
    each = "" if plan.teacher_cost is None else f", each as {plan.teacher_cost:.2f} forward of the model"
    return [("passes of the teacher", f"{plan.teacher} forward{each}")]


def show(plan: Plan) -> None:
    """On stderr: stdout belongs to the recipe."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False)
        for name, value in rows(plan):
            table.add_row(name, value)
        Console(stderr=True).print(table)
    else:
        for name, value in rows(plan):
            print(f"{name:<30} {value}", file=sys.stderr)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.1f}"


def _hours(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "unknown"
    return f"{value / GIB:.2f} GiB" if value >= GIB else f"{value / MIB:.1f} MiB"
