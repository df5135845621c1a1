"""How far a long piece of work on files is: a bar where somebody watches, a line every ten seconds elsewhere."""

import contextlib
import sys
import time

from engine.progress import BarProgress, is_watched

LINE_EVERY_S = 10.0


class Counter:
    """A `data.watch.Watch` on stderr, for one verb after another."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar = BarProgress() if is_watched() else None
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.say(text)
            return
        with contextlib.suppress(OSError):  # nobody reads: the work goes on
            print(text, file=sys.stderr, flush=True)

    def advance(self, done: int, total: int, unit: str = "images") -> None:
        """`done` of `total`; what was there at the first call is not counted into the pace."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._name, done, total)
        elif now - self._said >= LINE_EVERY_S:
            pace = (done - (self._first or 0)) / (now - self._started)
            self.say(f"{self._name}: {done} of {total} {unit}, {pace:.0f} a second")
            self._said = now
        if self._first is None:
            self._first, self._started = done, now

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
