"""The confidence sequence: exact on worked cases; it holds at all times together, as a running interval does not."""

import math

import numpy as np
import pytest

from engine.ledger import wilson_interval
from engine.sampling import sequential_interval

LOOK_EVERY = 8


def test_two_images_by_hand() -> None:
    """N = 2, one drawn, right. The uniform prior of 1/3 each becomes 0, 1/3, 2/3: the ratios are 1 and 1/2, and no M
    that is possible is lost at 95 %. With 50 images of 50 alike, the ratio of M is (1/51) / P(M)."""
    assert sequential_interval(1, 1, 2) == (0.5, 1.0)
    low, high = sequential_interval(25, 25, 50)
    assert high == 1.0
    # P(M = 25 + j) is beta-binomial(25; 26, 1): C(25, j) B(26 + j, 26 - j) / B(26, 1)
    ratio = {}
    for j in range(26):
        log_beta = math.lgamma(26 + j) + math.lgamma(26 - j) - math.lgamma(52) + math.log(26)
        ratio[25 + j] = 1 / 51 / (math.comb(25, j) * math.exp(log_beta))
    assert low == min(m for m, value in ratio.items() if value < 20) / 50


def test_its_ends() -> None:
    assert sequential_interval(0, 0, 10) == (0.0, 1.0)
    assert sequential_interval(3, 10, 10) == (0.3, 0.3)
    assert sequential_interval(0, 60, 100).low == 0.0
    wide, narrow = sequential_interval(30, 100, 1000), sequential_interval(300, 900, 1000)
    assert wide.half_width > narrow.half_width > 0
    assert wide.low <= 0.3 <= wide.high
    assert sequential_interval(30, 100, 1000, confidence=0.99).half_width > wide.half_width


@pytest.mark.parametrize(("right", "drawn", "total"), [(3, 2, 10), (1, 11, 10), (0, 0, 0), (-1, 1, 2)])
def test_counts_that_cannot_be(right: int, drawn: int, total: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= successes <= drawn <= total"):
        sequential_interval(right, drawn, total)


@pytest.mark.parametrize("share", [0.03, 0.35, 0.5])
def test_it_holds_whenever_one_looks(share: float) -> None:
    """400 orders of 400 images, looked at after every eight: at 95 % at most 5 % may ever lose the share, and a Wilson
    interval that is looked at as often loses it far more often."""
    total, repeats, rng = 400, 400, np.random.default_rng(7)
    lost = lost_by_wilson = 0
    for _ in range(repeats):
        order = rng.permutation(total) < round(share * total)
        sums, looks = np.cumsum(order), range(LOOK_EVERY, total, LOOK_EVERY)
        found = [sequential_interval(int(sums[n - 1]), n, total) for n in looks]
        naive = [wilson_interval(int(sums[n - 1]), n) for n in looks]
        truth = round(share * total) / total
        lost += any(not low <= truth <= high for low, high in found)
        lost_by_wilson += any(not low <= truth <= high for low, high in naive)
    assert lost / repeats <= 0.05
    assert lost_by_wilson / repeats > 0.1
