"""Writes a benchmark's result as dated Markdown and JSON in benchmarks/results, with the command and the machine."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def rows_of_today(name: str, key: str = "rows") -> list[dict[str, Any]]:
    """What `write_result` wrote under `key` today: a benchmark of hours goes on from it. Empty when there is none."""
    try:
        found = json.loads((RESULTS / f"{datetime.date.today().isoformat()}-{name}.json").read_text())
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = found.get(key, [])
    return rows


def write_result(name: str, *, title: str, text: Sequence[str], data: Mapping[str, Any]) -> Path:
    """results/DATE-NAME.md and .json; `text` are the Markdown lines below title, command and machine."""
    command = f"python {Path(sys.argv[0]).as_posix()} {' '.join(sys.argv[1:])}".strip()
    if Path(sys.argv[0]).is_absolute():
        command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
    facts = machine()
    base = RESULTS / f"{datetime.date.today().isoformat()}-{name}"
    RESULTS.mkdir(exist_ok=True)
    line = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
    base.with_suffix(".md").write_text(
        "\n".join([f"# {title}", "", f"`{command}`", "", f"Machine: {line}.", "", *text, ""])
    )
    base.with_suffix(".json").write_text(
        json.dumps({"command": command, "machine": facts, **data}, indent=1) + "\n"
    )
    return base.with_suffix(".md")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
