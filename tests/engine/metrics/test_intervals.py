"""Intervals of means against the textbook and by simulation; Wilson's are tested with the ledger."""

import numpy as np
import pytest

from engine.ledger import wilson_interval as of_the_ledger
from engine.metrics.intervals import mean_interval, wilson_interval


def test_there_is_one_wilson_interval() -> None:
    assert of_the_ledger is wilson_interval


def test_mean_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    found = mean_interval(4, values.sum(), (values**2).sum())
    assert found.value == 2.5
    assert found.high - found.value == pytest.approx(1.959964 * values.std(ddof=1) / 2)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert mean_interval(4, 8.0, 15.999).low == mean_interval(4, 8.0, 16.0).high == 2.0  # sums round


def test_mean_intervals_hold_what_they_promise() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        values = draw.exponential(1.0, 400)  # as skewed as losses are
        found = mean_interval(400, values.sum(), (values**2).sum())
        held += found.low <= 1.0 <= found.high
    assert 0.93 < held / 2000 < 0.965


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="mean of 0 values"):
        mean_interval(0, 0.0, 0.0)
    with pytest.raises(ValueError, match="0 < c < 1"):
        mean_interval(3, 1.0, 1.0, confidence=1.0)
