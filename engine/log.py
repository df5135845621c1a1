"""What a run says while it runs: `log.jsonl` for machines, plain lines for people, both from rank 0 only."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any


class RunLog:
    """Appends one JSON object a line. Each has `event` and `time` (seconds since the epoch); see TRAIN.md."""

    def __init__(self, path: Path | None) -> None:
        """`path` None: nothing is written (ranks other than 0)."""
        self._path = path
        self._begun = False

    @property
    def is_open(self) -> bool:
        """Whether this rank is the one that speaks."""
        return self._path is not None

    def write(self, event: str, **values: Any) -> None:
        if self._path is None:
            return
        entry = {"event": event, "time": round(time.time(), 3), **values}
        # JSON has no NaN: a diverged loss is null.
        plain = {
            name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in entry.items()
        }
        line = json.dumps(plain) + "\n"
        if not self._begun:
            line, self._begun = _line_break(self._path) + line, True
        # One write of one line: a kill leaves at most one torn line, which readers skip.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self._path is not None:
            # A terminal that was closed, or `| head`, must not cost a run.
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)


def _line_break(path: Path) -> str:
    """What a file that ends in the middle of a line (a killed writer's) needs before the next one."""
    if not path.exists() or path.stat().st_size == 0:
        return ""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return "" if file.read(1) == b"\n" else "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole entries of a `log.jsonl`; torn lines are left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries
