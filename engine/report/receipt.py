"""What the runs have cost, beside what they were to cost: a table from their receipt.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.receipt import RECEIPT
from engine.report.facts import RunFacts
from engine.report.layout import scroll, section, table
from engine.report.markup import Markup, tag
from engine.report.words import NOTHING, duration_text

Receipt = Mapping[str, Mapping[str, object]]
NOTE = (
    "Planned by the recipe, hours by the speed behind the first updates; used by the log: updates that were made "
    "twice, after a kill or a rollback, count twice. Memory is that of the last start."
)
_PASSES = (("forward", "forward"), ("input_only", "backward to the image"), ("full", "full backward"))


def read_receipt(folder: Path) -> tuple[Receipt, list[str]]:
    """Its parts `planned` and `used`, empty where a run has none yet; warnings."""
    try:
        found = json.loads((folder / RECEIPT).read_text())
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"{RECEIPT} cannot be read: {error}"]
    named = found if isinstance(found, dict) else {}
    parts = {name: part for name in ("planned", "used") if isinstance(part := named.get(name), dict)}
    if len(parts) < 2:
        return {}, [f"{RECEIPT} is no receipt: it has no objects `planned` and `used`"]
    return parts, []


def cost_lines(runs: Sequence[RunFacts]) -> list[list[str]]:
    """The head and the lines of the table: a name, then planned and used of each run that has a receipt."""
    there = [run for run in runs if run.receipt]
    if not there:
        return []
    prefix = [f"{run.name}: " if len(runs) > 1 else "" for run in there]
    head = ["", *(f"{name}{word}" for name in prefix for word in ("planned", "used"))]
    columns = [_column(run.receipt) for run in there]
    return [head, *([name, *(cell for own in columns for cell in own[name])] for name in columns[0])]


def cost_section(runs: Sequence[RunFacts]) -> Markup:
    """Nothing, where no run has a receipt."""
    lines = cost_lines(runs)
    if not lines:
        return Markup()
    note = tag("p", NOTE, class_="note")
    return section("Cost", scroll(table(lines[0], lines[1:]), "Cost, planned and used"), note)


def _column(receipt: Receipt) -> dict[str, tuple[str, str]]:
    planned, used = receipt["planned"], receipt["used"]
    memory = (
        f"{_size(used.get('memory_bytes'))} ({used.get('memory_of')})" if "memory_bytes" in used else NOTHING
    )
    rows = {
        "updates": (_count(planned.get("updates")), _count(used.get("updates"))),
        "images trained on": (_count(planned.get("images")), _count(used.get("images"))),
        "passes per image": (_passes(planned.get("passes_per_image")), NOTHING),
        "images/s": (_count(used.get("images_per_s_at_first")), _count(used.get("images_per_s"))),
        "time in training": (_hours(planned.get("train_hours")), _hours(used.get("train_hours"))),
        "time in evaluations": (NOTHING, _hours(used.get("eval_hours"))),
        "peak memory": (NOTHING, memory),
    }
    for name in ("starts", "rollbacks", "alarms", "updates_left_out"):
        rows[name.replace("_", " ")] = (NOTHING, _count(used.get(name)))
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> str:
    if not _is_number(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{float(str(value)):,.1f}"


def _hours(value: object) -> str:
    return duration_text(3600 * float(str(value))) if _is_number(value) else NOTHING


def _size(value: object) -> str:
    return f"{float(str(value)) / (1 << 30):.2f} GiB" if _is_number(value) else NOTHING


def _passes(value: object) -> str:
    if not isinstance(value, Mapping):
        return NOTHING
    parts = [f"{value[name]} {words}" for name, words in _PASSES if value.get(name)]
    teacher = [f"{value['teacher']} of the teacher"] if value.get("teacher") else []
    return ", ".join(parts + teacher)
