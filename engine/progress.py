"""What a person sees while a run goes on: a bar on a terminal, plain lines anywhere else. All of it on stderr.

Nothing here reads a device: the bar counts steps that were handed out, its other numbers are the last report's.
"""

import contextlib
import io
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

WINDOW_S = 30.0
NOT_COUNTED = 2  # the first steps of a phase compile and fill queues: their pace says nothing of the rest
REFRESH_PER_S = 2.0
BAR_COLUMNS = (10, 40)  # least and most


class Progress(Protocol):
    """One per process that speaks (rank 0)."""

    def say(self, text: str, *, important: bool = False) -> None:
        """A line; `important` ones (results, warnings, how a run ended) are said under --quiet too."""

    def report(self, text: str, values: Mapping[str, Any]) -> None:
        """A train report: as a line, and its values `loss`, `lr`, `images_per_s`, `epoch`."""

    def advance(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` updates ("train") or images (an evaluation's name); a new phase takes the bar over."""

    def close(self) -> None:
        """Leaves the terminal as it was. May be called twice."""


def open_progress(*, quiet: bool) -> Progress:
    """A bar where somebody watches, lines where a file or another program does."""
    return BarProgress() if not quiet and is_watched() else PlainProgress(quiet=quiet)


def is_watched() -> bool:
    """Whether stderr is a terminal that can redraw a line. CI systems offer one that only looks so."""
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed, or replaced by something else
        return False
    return is_terminal and os.environ.get("TERM") not in (None, "", "dumb") and not os.environ.get("CI")


class PlainProgress:
    """A line for each thing said, good for log files; with `quiet` the important ones only."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def say(self, text: str, *, important: bool = False) -> None:
        if important or not self._quiet:
            # A terminal that was closed, or `| head`, must not cost a run.
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def report(self, text: str, values: Mapping[str, Any]) -> None:
        self.say(text)

    def advance(self, phase: str, done: int, total: int) -> None:
        """Lines come with reports."""

    def close(self) -> None:
        """Nothing is open."""


class Pace:
    """How fast a count grows, by its last `window_s` seconds and without its first `skip` observations."""

    def __init__(self, *, window_s: float = WINDOW_S, skip: int = NOT_COUNTED) -> None:
        self._window_s = window_s
        self._skip = skip
        self._seen: deque[tuple[float, int]] = deque()
        self._before_pause: float | None = None

    def add(self, done: int, now: float) -> None:
        """`now` in seconds, of any clock that does not jump."""
        if self._skip:
            self._skip -= 1
        elif (
            not self._seen or now - self._seen[-1][0] >= 0.1
        ):  # thousands of steps a second need not all be kept
            self._seen.append((now, done))
            while len(self._seen) > 2 and now - self._seen[0][0] > self._window_s:
                self._seen.popleft()

    def pause(self) -> None:
        """Something else takes over: time goes on and the count does not."""
        self._before_pause = self.per_s()
        self._seen.clear()

    def per_s(self) -> float | None:
        """None while there is too little to tell from."""
        if len(self._seen) < 2:
            return self._before_pause
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start)

    def left_s(self, done: int, total: int) -> float | None:
        """Seconds until `done` is `total`."""
        rate = self.per_s()
        return (total - done) / rate if rate else None


class BarProgress:
    """One line at the bottom of the terminal that is drawn anew, and everything said above it."""

    def __init__(self) -> None:
        self._console = _console()
        self._live: Live | None = None
        self._phase, self._done, self._total = "", 0, 1
        self._paces: dict[str, Pace] = {}
        self._report: Mapping[str, Any] = {}
        self._epoch_said = -1

    def say(self, text: str, *, important: bool = False) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report(self, text: str, values: Mapping[str, Any]) -> None:
        """The bar shows the values. One line an epoch is left above it, to look back at."""
        self._report = values
        if int(values["epoch"]) > self._epoch_said:
            self._epoch_said = int(values["epoch"])
            self.say(text)

    def advance(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase and self._phase in self._paces:
            self._paces[self._phase].pause()
        self._phase, self._done, self._total = phase, done, total
        self._paces.setdefault(phase, Pace()).add(done, time.monotonic())
        if self._live is None:
            self._live = self._start()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _start(self) -> "Live":
        from rich.live import Live

        live = Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,  # belongs to results
            redirect_stderr=True,  # other people's warnings go above the bar
        )
        live.start(refresh=True)
        return live

    def _line(self) -> "RenderableType":
        """Name, bar, and as many of the facts as the terminal is wide."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        facts = self._facts()
        space = self._console.width - len(self._phase) - 1
        while len(facts) > 1 and space - sum(len(fact) + 2 for fact in facts) < BAR_COLUMNS[0]:
            facts.pop()
        width = min(BAR_COLUMNS[1], max(1, space - sum(len(fact) + 2 for fact in facts)))
        line = Table.grid(padding=0)
        for _ in range(3):
            line.add_column(no_wrap=True)
        bar = ProgressBar(total=self._total, completed=self._done, width=width)
        line.add_row(f"{self._phase} ", bar, "".join(f"  {fact}" for fact in facts))
        return line

    def _facts(self) -> list[str]:
        pace = self._paces[self._phase]
        facts = [f"{self._done}/{self._total}", f"ETA {_clock(pace.left_s(self._done, self._total))}"]
        if self._phase != "train":
            rate = pace.per_s()
            return facts + ([f"{rate:.0f} images/s"] if rate else [])
        if self._report:
            r = self._report
            facts += [f"loss {r['loss']:.4f}", f"{r['images_per_s']:.0f} images/s", f"lr {r['lr']:.2e}"]
        return facts


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Patient(io.TextIOBase):
    """stderr that never fails: a terminal that was closed must not cost a run."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _console() -> "Console":
    from rich.console import Console

    class VisibleCursor(Console):
        """Leaves the cursor on: whoever hides it must live to show it again, and a run may be killed at any time."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return VisibleCursor(file=_Patient(), force_terminal=True)  # type: ignore[arg-type]
