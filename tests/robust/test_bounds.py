"""Bounds on what a cheap search missed: exact numbers, and what an audit counts."""

import pytest
from scipy.stats import beta

from robust.bounds import Audit, Row, audit_of, clopper_pearson
from robust.versions import version_of


@pytest.mark.parametrize("trials", [1, 7, 60, 3000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_is_the_quantile_of_the_beta_distribution(trials: int, confidence: float) -> None:
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        wanted = beta.ppf(confidence, successes + 1, trials - successes) if successes < trials else 1.0
        assert clopper_pearson(successes, trials, confidence=confidence) == pytest.approx(wanted, rel=1e-9)


def test_no_trial_knows_nothing() -> None:
    assert clopper_pearson(0, 0, confidence=0.95) == 1.0
    with pytest.raises(ValueError, match="3 successes of 2 trials"):
        clopper_pearson(3, 2, confidence=0.95)


def test_what_is_left_at_least_counts_hidden_breaks_among_those_not_audited_alone() -> None:
    audit = Audit(num_images=1000, survivors=500, audited=100, broken=2)
    missed = audit.most_missed()
    assert missed == pytest.approx(0.0616, abs=1e-4)
    assert audit.least_robust() == pytest.approx((500 - 2 - 400 * missed) / 1000)
    assert "broke 2" in str(audit)
    assert "at most 6.2 %" in str(audit)
    whole = Audit(num_images=1000, survivors=500, audited=500, broken=2)
    assert whole.least_robust() == pytest.approx(0.498), "nothing is hidden where all were audited"


def test_an_audit_counts_images_and_not_rows() -> None:
    fast = version_of("fast", norm="linf", num_classes=10)
    rows = [
        Row("a", "apgd-ce", True, True),
        *(Row("b", name, True, False) for name in ("apgd-ce", "apgd-t", "apgd-ce-audit", "apgd-t-audit")),
        *(Row("b", name, True, broken) for name, broken in (("fab-t", False), ("square", True))),
        *(Row("c", name, False, False) for name in ("apgd-ce-audit", "apgd-t-audit", "fab-t", "square")),
    ]
    assert audit_of(fast, rows, num_images=3) == Audit(num_images=3, survivors=2, audited=1, broken=1)
    assert audit_of(fast, rows[:1], num_images=1) is None
    assert audit_of(version_of("standard", norm="linf", num_classes=10), rows, num_images=3) is None
