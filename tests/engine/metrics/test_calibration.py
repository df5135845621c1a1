"""Calibration against closed forms, loops over rows, and models whose calibration is known by construction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.calibration import (
    NUM_BINS,
    Bin,
    Scores,
    bin_of,
    calibration,
    debiased_error,
    expected_error,
    scores_of,
    squared_error,
)

DRAW = np.random.default_rng(0)


def sums(confidence: np.ndarray, correct: np.ndarray) -> Scores:
    nothing = np.zeros(len(confidence))
    return scores_of(confidence, correct, nothing, nothing)


def test_by_hand() -> None:
    found = scores_of([0.9, 0.92, 0.35, 1.0], [1, 0, 0, 1], [0.1, 2.3, 1.4, 0.0], [0.02, 1.7, 0.9, 0.0])
    # 0.9 and 0.92 share the bin from 13/15 to 14/15, 1.0 is in the last one.
    assert [part.num for part in found.bins] == [1, 2, 1]
    assert expected_error(found.bins) == pytest.approx((0.35 + abs(1.82 - 1) + 0) / 4)
    result = calibration(found)
    assert result is not None
    assert result["num_scored"] == 4
    assert result["nll"] == pytest.approx(0.95)
    assert result["brier"] == pytest.approx(0.655)
    spread = np.std([0.1, 2.3, 1.4, 0.0], ddof=1) / 2
    assert result["nll_interval"] == pytest.approx([0.95 - 1.959964 * spread, 0.95 + 1.959964 * spread])


@given(st.integers(1, 400), st.integers(0, 50))
def test_expected_error_is_the_mean_of_gaps(num: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    confidence, correct = draw.random(num), draw.random(num) < 0.7
    by_bin: dict[int, list[tuple[float, bool]]] = {}
    for sure, right in zip(confidence, correct, strict=True):
        by_bin.setdefault(min(int(sure * NUM_BINS), NUM_BINS - 1), []).append((sure, right))
    gaps = [abs(sum(s for s, _ in rows) - sum(r for _, r in rows)) for rows in by_bin.values()]
    assert expected_error(sums(confidence, correct).bins) == pytest.approx(sum(gaps) / num)


def test_the_ends_of_bins() -> None:
    """The lower end belongs to a bin; 1 to the last one, which has no upper neighbour."""
    assert bin_of(np.array([0.0, 1 / 15, 14 / 15, 0.97, 1.0])).tolist() == [0, 1, 14, 14, 14]


def test_extremes() -> None:
    always_sure = sums(np.ones(50), np.zeros(50))
    assert expected_error(always_sure.bins) == debiased_error(always_sure.bins) == 1
    perfect = sums(np.ones(50), np.ones(50))
    assert expected_error(perfect.bins) == debiased_error(perfect.bins) == squared_error(perfect.bins) == 0
    assert calibration(sums(np.zeros(0), np.zeros(0))) is None


def test_the_debiased_one_is_nearer_to_zero_where_zero_is_the_truth() -> None:
    """A model whose confidence is its accuracy, on few images: the plain error is far from 0."""
    plain, debiased, squared, squared_plain = [], [], [], []
    for _ in range(500):
        confidence = DRAW.uniform(0.3, 1.0, 200)
        bins = sums(confidence, DRAW.random(200) < confidence).bins
        plain.append(expected_error(bins))
        debiased.append(debiased_error(bins))
        squared.append(squared_error(bins))
        squared_plain.append(sum(part.num * part.gap**2 for part in bins) / 200)
    assert np.mean(plain) > 0.06
    # |x| of a normal x has mean 0.798, drawn anew about itself 1.128: 0.33 of 0.798 goes.
    assert np.mean(debiased) / np.mean(plain) == pytest.approx(2 - 2**0.5, abs=0.06)
    assert abs(np.mean(squared)) < 0.06 * np.mean(squared_plain)


def test_both_find_a_large_error() -> None:
    """Too sure by 0.2 everywhere: with many images both say 0.2."""
    confidence = DRAW.uniform(0.5, 1.0, 50_000)
    bins = sums(confidence, DRAW.random(50_000) < confidence - 0.2).bins
    assert expected_error(bins) == pytest.approx(0.2, abs=0.01)
    assert debiased_error(bins) == pytest.approx(0.2, abs=0.01)
    assert squared_error(bins) ** 0.5 == pytest.approx(0.2, abs=0.01)


def test_the_folded_mean_is_what_drawing_anew_gives() -> None:
    """The bias that Kumar et al. estimate by sampling."""
    part = Bin(num=40, num_correct=30, confidence=31.0)
    spread = math.sqrt(0.75 * 0.25 / 40)
    drawn = np.abs(31 / 40 - DRAW.normal(0.75, spread, 400_000)).mean()
    plain = abs(31 / 40 - 0.75)
    assert debiased_error([part]) == pytest.approx(plain - (drawn - plain), abs=5e-4)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60), st.integers(1, 59))
def test_sums_of_two_ledgers_add_up(rows: list[tuple[float, bool]], cut: int) -> None:
    confidence, correct = (np.array(column) for column in zip(*rows, strict=True))
    whole = sums(confidence, correct)
    parts = [sums(confidence[:cut], correct[:cut]), sums(confidence[cut:], correct[cut:])]
    assert sum(part.num for part in parts) == whole.num
    added: dict[int, list[float]] = {}
    for part in parts:
        for one in part.bins:
            place = min(int(one.confidence / one.num * NUM_BINS + 1e-12), NUM_BINS - 1)
            have = added.setdefault(place, [0.0, 0.0, 0.0])
            added[place] = [a + b for a, b in zip(have, one, strict=True)]
    bins = [Bin(int(n), int(k), c) for n, k, c in added.values()]
    if len(bins) == len(
        whole.bins
    ):  # a mean confidence that lies on a border may be told to the next bin here
        assert expected_error(bins) == pytest.approx(expected_error(whole.bins))


def test_bad_input() -> None:
    for confidence in ([1.2], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="outside"):
            scores_of(confidence, [True], [0.0], [0.0])
    with pytest.raises(ValueError, match="give four of one length"):
        scores_of([0.5, 0.5], [True], [0.0], [0.0])
    for error in (expected_error, debiased_error, squared_error):
        with pytest.raises(ValueError, match="no rows with a confidence"):
            error([])
