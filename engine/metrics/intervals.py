"""Confidence intervals: of a share of images, and of a mean over images from the sums of values and of squares."""

import math
from statistics import NormalDist
from typing import NamedTuple


class Mean(NamedTuple):
    """A mean of `num` values and the ends of its interval."""

    value: float
    low: float
    high: float
    num: int


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a share of k in n (Wilson 1927); inside [0, 1] also where k is 0 or n."""
    if not 0 <= k <= n or n == 0 or not 0 < confidence < 1:
        raise ValueError(
            f"interval of {k} in {n} at confidence {confidence}: needs 0 <= k <= n, n > 0, 0 < c < 1"
        )
    z = normal_quantile(confidence)
    centre = (k + z * z / 2) / (n + z * z)
    half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def mean_interval(num: int, total: float, squares: float, confidence: float = 0.95) -> Mean:
    """Mean of `num` values with sum `total` and sum of squares `squares`; normal approximation, for many images."""
    if num < 1 or not 0 < confidence < 1:
        raise ValueError(f"mean of {num} values at confidence {confidence}: needs 1 or more, 0 < c < 1")
    mean = total / num
    # The sums round: a variance of zero may come out a little below it.
    variance = max(0.0, squares - num * mean * mean) / max(1, num - 1)
    half = normal_quantile(confidence) * math.sqrt(variance / num)
    return Mean(mean, mean - half, mean + half, num)


def normal_quantile(confidence: float) -> float:
    """How many standard errors an interval reaches to both sides."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)
