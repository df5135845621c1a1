"""A confidence sequence for a share, sampled without replacement: intervals that hold at all times together.

Whoever looks after each block and stops when the interval is short enough has no 95 % from a Wilson interval, which
holds at one time fixed in advance. These hold at every time at once, so also at one chosen by looking.

Source: Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020,
arXiv:2006.04347, theorem 2.1: of M successes among N, drawn without replacement, prior(M) / posterior(M) is a
martingale, so by Ville's inequality the set of M where it stays below 1/alpha loses the true M with probability alpha
at most, over all times. The prior here is beta-binomial with a = b = 1, uniform over 0..N.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Of a share in a population."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2.0


def sequential_interval(
    successes: int, drawn: int, total: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """The interval after `drawn` of `total` in random order, of which `successes` count; the share itself when all are
    drawn. About 2 ms for 50,000."""
    if not 0 <= successes <= drawn <= total or total == 0 or not 0 < confidence < 1:
        raise ValueError(
            f"interval of {successes} in {drawn} of {total} at confidence {confidence}: needs 0 <= successes <= "
            "drawn <= total, total > 0, 0 < confidence < 1"
        )
    possible = np.arange(successes, total - (drawn - successes) + 1)  # no other M fits what was seen
    log_ratio = -np.log(total + 1.0) - _log_posterior(possible - successes, successes, drawn, total)
    inside = possible[log_ratio < -np.log(1.0 - confidence)]
    return Interval(float(inside[0]) / total, float(inside[-1]) / total)


def _log_posterior(still: NDArray[np.int64], successes: int, drawn: int, total: int) -> NDArray[np.float64]:
    """log P(`still` successes among those not drawn yet): beta-binomial with a = successes + 1, b = failures + 1."""
    rest, a, b = total - drawn, successes + 1, drawn - successes + 1
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1.0, total + 3.0)))))
    return (  # type: ignore[no-any-return]
        log_factorial[rest]
        - log_factorial[still]
        - log_factorial[rest - still]
        + log_factorial[still + a - 1]
        + log_factorial[rest - still + b - 1]
        - log_factorial[rest + a + b - 1]
        + log_factorial[a + b - 1]
        - log_factorial[a - 1]
        - log_factorial[b - 1]
    )
