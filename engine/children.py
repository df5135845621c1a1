"""Launchers started by a script: their lines with a label, an interruption passed on once and waited for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
DEFAULTS = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"}


class Interrupted(Exception):
    """The person asked to stop (Ctrl-C, SIGTERM); the children have saved what they had and ended."""


class Children:
    """Runs launchers, several at once from several threads. A context manager: inside of it the first Ctrl-C or
    SIGTERM is passed on to all children, which save their state and end; a second one ends them at once.

    Each child has a session of its own: a terminal sends Ctrl-C to a whole group, and a training that gets two
    of them stops without saving.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._asked = 0
        self._before: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        return self._asked > 0

    def __enter__(self) -> "Children":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        self._asked += 1
        if self._asked == 1:
            self.say(
                "quickstart", "stopping: waiting until what runs has saved its state (Ctrl-C ends it now)"
            )
        for process in list(self._running):
            process.send_signal(signal.SIGINT if self._asked == 1 else signal.SIGKILL)

    def say(self, label: str, text: str) -> None:
        """One whole line on stdout."""
        # Not under a lock: the signal's handler speaks too, on a thread that may hold it.
        os.write(1, f"{label:>10} | {text}\n".encode())

    def launch(self, kind: str, label: str, verb: str, *words: object) -> None:
        """`launch_KIND.py VERB WORDS`, its lines passed on. Interrupted after a stop was asked for;
        CalledProcessError when it fails by itself."""
        flags = ["--cpu"] if kind == "gpu" else []
        self.run(label, [sys.executable, f"launch_{kind}.py", *flags, verb, *map(str, words)])

    def run(self, label: str, command: Sequence[str], extra: Mapping[str, str] | None = None) -> None:
        """Any command, in the checkout."""
        with self._lock:
            if self.stopping:
                raise Interrupted
            process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env=DEFAULTS | os.environ | dict(extra or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            with process:  # closes the pipe and waits
                for line in process.stdout or ():
                    self.say(label, line.rstrip())
        finally:
            self._running.discard(process)
        if self.stopping:
            raise Interrupted
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command)[1:])
