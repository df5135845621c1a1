"""Effective robustness and the relative drop: lines with a known answer, the stored table, bad tables."""

from pathlib import Path

import numpy as np
import pytest

from data.suite import list_suites
from engine.metrics.effective import (
    Point,
    effective_robustness,
    fit_line,
    load_baselines,
    logit,
)
from engine.metrics.relative import relative_drop


def expit(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


LINE = [Point(c, expit(0.9 * logit(c) - 0.5)) for c in (0.6, 0.65, 0.7, 0.75, 0.8)]


def test_a_model_on_the_line_has_none() -> None:
    line = fit_line(LINE)
    assert (line.slope, line.intercept) == pytest.approx((0.9, -0.5))
    assert line.residual == pytest.approx(0, abs=1e-9)
    shifted = expit(0.9 * logit(0.72) - 0.5)
    found = effective_robustness(line, 0.72, shifted, (shifted - 0.01, shifted + 0.01))
    assert found is not None
    assert found["value"] == pytest.approx(0, abs=1e-12)
    assert found["interval"] == pytest.approx([-0.01, 0.01])
    assert found["is_inside"]
    above = effective_robustness(line, 0.9, 0.8, (0.79, 0.81))
    assert above is not None
    assert above["value"] == pytest.approx(0.8 - line.expected(0.9))
    assert not above["is_inside"]
    assert effective_robustness(line, 1.0, 0.8, (0.7, 0.9)) is None


def test_the_fit_is_numpy_s() -> None:
    draw = np.random.default_rng(0)
    points = [Point(*pair) for pair in draw.uniform(0.3, 0.9, (40, 2)).tolist()]
    x, y = (np.array([logit(p[i]) for p in points]) for i in (0, 1))
    line = fit_line(points)
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    rest = y - np.polyval(np.polyfit(x, y, 1), x)
    assert line.residual == pytest.approx(np.sqrt((rest**2).sum() / 38))


def test_the_stored_table() -> None:
    """Every set is a suite, has a source and a line on which more clean accuracy means more of the other."""
    stored = load_baselines()
    assert set(stored) <= {suite.id for suite in list_suites()}
    for found in stored.values():
        line = fit_line(list(found.points.values()))
        assert line.slope > 0
        assert len(found.source) > 20
    v2 = fit_line(list(stored["v2-matched-frequency"].points.values()))
    assert v2.expected(0.7613) == pytest.approx(0.6333, abs=0.015)  # tv_resnet50's own pair


def test_a_table_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("mine: {source: me, models: {a: [70, 50.5], b: [80.0, 60]}}\n")
    found = load_baselines(path)["mine"]
    assert found.points["a"] == Point(0.7, 0.505)
    with pytest.raises(ValueError, match="2 models: a line needs 5 or more"):
        fit_line(list(found.points.values()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {source: me, models: {a: [70]}}", "mine: a: .70. is no pair"),
        ("mine: {source: me, models: {a: [70, 0]}}", "must lie between 0 and 100"),
        ("mine: {source: me, models: {a: [70, x]}}", "could not convert"),
        ("mine: {models: {a: [70, 60]}}", "'source'"),
        ("mine: {source: me, models: [1]}", "models is no mapping"),
        ("[1, 2]", "items"),
        ("a: [", "own.yaml: "),
    ],
)
def test_bad_tables_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_baselines(path)
    assert "\n" not in str(caught.value)
    assert "in per cent" in str(caught.value)


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="no line goes through them"):
        fit_line([Point(0.7, 0.5 + 0.01 * i) for i in range(6)])
    with pytest.raises(ValueError, match="not per cent"):
        effective_robustness(fit_line(LINE), 70.0, 0.5, (0.4, 0.6))
    with pytest.raises(ValueError, match="has no logit"):
        logit(1.0)


def test_relative_drop() -> None:
    assert relative_drop(0.6998, 0.4995) == pytest.approx(-0.2862, abs=5e-5)  # -28.6 %, as published
    assert relative_drop(0.5, 0.55) == pytest.approx(0.1)
    assert relative_drop(0.0, 0.0) is None
    for pair in ((70.0, 0.5), (0.5, -0.1), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match="not per cent"):
            relative_drop(*pair)
