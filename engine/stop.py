"""Stop requests: SIGTERM, SIGINT or a notice of the machine set a flag, ranks agree on it at report boundaries, the
state is saved.
"""

import signal
from types import FrameType

EXIT_STOPPED = 75
MAX_REPORT_GAP_S = 10.0


class Stopped(Exception):
    """The run was asked to stop and its state is saved."""


class StopRequest:
    """Installed for the length of a `with`; a second Ctrl-C interrupts at once, as anyone would expect."""

    def __init__(self) -> None:
        self.asked = False
        self.reason = ""  # where it was no signal
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ask(self, reason: str) -> None:
        """As a signal does; from any thread."""
        self.reason, self.asked = reason, True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def steps_until_report(step_s: float, report_every: int) -> int:
    """Steps to the next report: `report_every`, or fewer where those would take more than ten seconds.

    `step_s` must be agreed between ranks, or they would report at different steps and wait for each other.
    """
    if step_s <= 0.0:
        return report_every
    return max(1, min(report_every, int(MAX_REPORT_GAP_S / step_s)))
