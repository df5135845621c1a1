"""mCE and its relatives against anchors worked by hand, published tables, and each other."""

import math

import numpy as np
import pytest

from engine.metrics.mce import (
    ALEXNET,
    ALEXNET_CLEAN,
    CORRUPTIONS,
    EXTRA,
    GROUPS,
    check_errors,
    corruption_error,
    corruption_result,
    mean_corruption_error,
    relative_mce,
)

ONES = {name: [1.0] * 5 for name in CORRUPTIONS}
# Means over severities as the literature prints AlexNet's, to six digits.
MEANS = (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572)
MEANS += (0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500)


def test_the_table_is_whole() -> None:
    assert list(ALEXNET) == list(CORRUPTIONS) == [name for group in GROUPS.values() for name in group]
    assert not set(EXTRA) & set(CORRUPTIONS)
    for name, mean in zip(CORRUPTIONS, MEANS, strict=True):
        assert sum(ALEXNET[name]) / 5 == pytest.approx(mean, abs=5e-7)


def test_anchors() -> None:
    assert mean_corruption_error(ONES) == pytest.approx(129.345, abs=5e-4)
    assert mean_corruption_error(ALEXNET) == pytest.approx(100, abs=1e-9)
    assert corruption_result(ALEXNET)["mean_error"] == pytest.approx(78.8993, abs=5e-5)
    assert mean_corruption_error({name: [0.0] * 5 for name in CORRUPTIONS}) == 0
    assert relative_mce(ALEXNET, ALEXNET_CLEAN) == pytest.approx(100, abs=1e-9)
    assert relative_mce({name: [0.3] * 5 for name in CORRUPTIONS}, 0.3) == pytest.approx(0, abs=1e-9)


# (mCE, un-normalised mean error), in per cent: one model, two numbers that are often taken for each other.
PAIRS = {"ResNet-50": (76.38, 60.52), "AugMix": (64.17, 50.67), "DeepAugment+AugMix": (60.04, 47.10)}
PAIRS["DeiT-B"] = (41.70, 32.45)


@pytest.mark.parametrize("model", PAIRS)
def test_published_pairs_are_of_one_model(model: str) -> None:
    """Errors in AlexNet's proportions with the published mean error give the published mCE to a point and a half; taken
    for each other they are ten points apart."""
    mce, mean = PAIRS[model]
    factor = mean / 100 / np.mean(MEANS)
    scaled = {name: [min(1.0, factor * value) for value in row] for name, row in ALEXNET.items()}
    found = corruption_result(scaled)
    assert found["mean_error"] == pytest.approx(mean, abs=0.01)
    assert found["mce"] == pytest.approx(mce, abs=1.5)
    assert abs(found["mce"] - mean) > 5 * abs(found["mce"] - mce)


def test_sums_by_hand() -> None:
    errors = {name: [0.1 * s + 0.001 * place for s in range(1, 6)] for place, name in enumerate(CORRUPTIONS)}
    found = corruption_result(errors, clean_error=0.05)
    rows = np.array([errors[name] for name in CORRUPTIONS])
    alexnet = np.array([ALEXNET[name] for name in CORRUPTIONS])
    assert found["mean_error"] == pytest.approx(100 * rows.mean())
    assert found["mce"] == pytest.approx(100 * (rows.sum(1) / alexnet.sum(1)).mean())
    added = (rows - 0.05).sum(1) / (alexnet - ALEXNET_CLEAN).sum(1)
    assert found["relative_mce"] == pytest.approx(100 * added.mean())
    assert found["severities"] == pytest.approx(100 * rows.mean(0))
    assert found["groups"]["blur"] == pytest.approx(100 * rows[3:7].mean())
    assert found["errors"]["fog"] == pytest.approx(100 * rows[9].mean())
    assert found["corruption_errors"]["snow"] == pytest.approx(corruption_error("snow", errors["snow"]))
    assert corruption_result(errors)["relative_mce"] is None


def test_the_extra_four_are_in_no_number() -> None:
    more = {**ALEXNET, **{name: [1.0] * 5 for name in EXTRA}}
    assert corruption_result(more) == corruption_result(ALEXNET)
    assert list(check_errors(more)) == list(CORRUPTIONS)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({n: r for n, r in ONES.items() if n != "snow"}, "snow missing: a mean over other corruptions"),
        ({**ONES, "rain": [1.0] * 5}, "rain: no corruption of ImageNet-C; leave it out"),
        ({**ONES, "fog": [1.0] * 4}, "fog has 4 errors; give those of severities 1 to 5"),
        ({**ONES, "fog": [57.9] * 5}, "fog has an error of 57.9; give shares from 0 to 1, not per cent"),
        ({**ONES, "fog": [math.nan] * 5}, "fog has an error of nan"),
    ],
)
def test_bad_input(errors: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        corruption_result(errors)
    assert "\n" not in str(caught.value)
