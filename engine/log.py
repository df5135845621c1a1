"""What a run says while it runs: `log.jsonl` and trackers for machines, lines and a bar for people; rank 0 only."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.progress import PlainProgress, Progress, open_progress
from engine.tracker import Trackers


class RunLog:
    """Appends one JSON object a line. Each has `event` and `time` (seconds since the epoch); see TRAIN.md."""

    def __init__(self, path: Path | None, *, progress: Progress | None = None) -> None:
        """`path` None: nothing is written (ranks other than 0). `progress` None: plain lines."""
        self._path = path
        self._progress = progress or PlainProgress()
        self._begun = False
        self._step: int | None = None
        self.trackers = Trackers()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(exit_code=0 if exception[0] is None else 1)

    def close(self, *, exit_code: int) -> None:
        """The bar goes, trackers are told how the run ended; once, later calls do nothing."""
        self._progress.close()
        self.trackers.close(exit_code)

    @property
    def is_open(self) -> bool:
        """Whether this rank is the one that speaks."""
        return self._path is not None

    def write(self, event: str, **values: Any) -> None:
        """One entry; an `eval` of a training gets the `step` it was made at."""
        if self._path is None:
            return
        if event == "eval" and self._step is not None:
            values = {"step": self._step, **values}
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
        self.trackers.entry(event, values.get("step", 0), values)

    def report(self, text: str, values: Mapping[str, Any]) -> None:
        """A `train` entry, and the same as a line or in the bar."""
        self.write("train", **values)
        if self._path is not None:
            self._progress.report(text, values)

    def say(self, text: str, *, important: bool = False) -> None:
        """A line for the person who watches; only `important` ones are left under --quiet."""
        if self._path is not None:
            self._progress.say(text, important=important)

    def warn(self, text: str, *, rank: int) -> None:
        """A line for the person who watches, of any process."""
        if self._path is None:
            print(f"rank {rank}: {text}", file=sys.stderr, flush=True)
        self.say(text, important=True)

    def reached(self, step: int, total: int) -> None:
        """The training has made `step` of `total` updates. Every update says so: no device is read for it."""
        self._step = step
        if self._path is not None:
            self._progress.advance("train", step, total)

    def judged(self, name: str, done: int, total: int) -> None:
        """Evaluation `name` has judged `done` of the `total` images it had to."""
        if self._path is not None:
            self._progress.advance(name, done, total)

    def preview(self, step: int, preview: Tensor) -> None:
        """Images of a training batch, see Trackers."""
        if self._path is not None:
            self.trackers.preview(step, preview)

    def flush(self) -> None:
        """What was said up to here survives a kill, in the trackers too."""
        self.trackers.flush()


def open_log(path: Path, rank: int, *, quiet: bool) -> RunLog:
    """The log of this process: it speaks on rank 0, on a terminal with a bar."""
    return RunLog(path, progress=open_progress(quiet=quiet)) if rank == 0 else RunLog(None)


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
