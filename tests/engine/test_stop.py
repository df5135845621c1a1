"""Stop requests: when reports come, and what a signal does."""

import os
import signal

import pytest

from engine.stop import MAX_REPORT_GAP_S, StopRequest, steps_until_report


@pytest.mark.parametrize(
    ("step_s", "report_every", "steps"),
    [
        (0.0, 50, 50),  # not measured yet
        (0.001, 50, 50),  # fast: as the recipe says
        (0.2, 50, 50),  # exactly ten seconds
        (0.25, 50, 40),  # ten seconds come first
        (3.0, 50, 3),
        (10.0, 50, 1),
        (600.0, 50, 1),  # at least one step
        (600.0, 1, 1),
        (1e-9, 1, 1),
    ],
)
def test_steps_until_report(step_s: float, report_every: int, steps: int) -> None:
    assert steps_until_report(step_s, report_every) == steps


@pytest.mark.parametrize("report_every", [1, 7, 1000])
def test_a_gap_is_ten_seconds_or_a_single_step(report_every: int) -> None:
    for step_ms in range(1, 30_000, 37):
        steps = steps_until_report(step_ms / 1000, report_every)
        assert 1 <= steps <= report_every
        assert steps == 1 or steps * step_ms / 1000 <= MAX_REPORT_GAP_S
        # and no more often than needed
        assert steps == report_every or (steps + 1) * step_ms / 1000 > MAX_REPORT_GAP_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_second_ctrl_c_interrupts_at_once_and_a_second_term_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)  # a shell's background job starts with it ignored
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
