"""The clock tells waiting for data from stepping: with a time that only the test moves."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from bits.clock import Clock


class Time:
    """A perf_counter that stands still until it is moved."""

    now = 100.0

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)
    return fake


def slow_batches(fake: Time, number: int) -> Iterator[int]:
    for value in range(number):
        fake.pass_(2.0)  # the loader
        yield value


def test_data_time_and_step_time(fake: Time) -> None:
    clock, seen = Clock(), []
    for batch in clock.timed(slow_batches(fake, 3)):
        fake.pass_(5.0)  # the step
        seen.append(batch)
    lap = clock.lap()
    assert seen == [0, 1, 2]
    assert (lap.num_steps, lap.total_s, lap.data_s) == (3, 21.0, 6.0)
    assert (lap.step_s, lap.total_per_step_s) == (5.0, 7.0)


def test_laps_start_anew(fake: Time) -> None:
    clock = Clock()
    batches = clock.timed(slow_batches(fake, 2))
    next(batches)
    fake.pass_(1.0)
    assert clock.lap().total_s == 3.0
    assert clock.elapsed_s() == 0.0
    fake.pass_(10.0)
    next(batches)
    assert clock.elapsed_s() == 12.0
    lap = clock.lap()
    assert (lap.num_steps, lap.data_s, lap.step_s) == (1, 2.0, 10.0)


def test_a_pause_is_no_time_of_training(fake: Time) -> None:
    clock = Clock()
    batches = clock.timed(slow_batches(fake, 2))
    next(batches)
    fake.pass_(1.0)
    with contextlib.suppress(KeyError), clock.paused():
        fake.pass_(600.0)  # an evaluation, which may be stopped
        raise KeyError
    next(batches)
    fake.pass_(1.0)
    lap = clock.lap()
    assert (lap.total_s, lap.data_s, lap.step_s) == (6.0, 4.0, 1.0)


def test_empty_lap_divides_nothing(fake: Time) -> None:
    lap = Clock().lap()
    assert (lap.num_steps, lap.step_s, lap.total_per_step_s) == (0, 0.0, 0.0)
