"""Calibration from sums over rows: expected calibration error, debiased forms, negative log-likelihood, Brier.

Confidence is the probability of the predicted class. Bins are of equal width, so that a bin is a sum over rows and
ledgers of several processes add up.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.metrics.intervals import mean_interval

NUM_BINS: Final = 15  # as Guo et al. 2017 (arXiv:1706.04599)


class Bin(NamedTuple):
    """Rows whose confidence lies between two of NUM_BINS + 1 equally spaced ends, the lower one included."""

    num: int
    num_correct: int
    confidence: float  # the sum

    @property
    def gap(self) -> float:
        """Mean confidence less accuracy: above 0 where the model is too sure."""
        return (self.confidence - self.num_correct) / self.num


class Scores(NamedTuple):
    """Sums over the rows that have scores."""

    num: int
    nll: float
    nll_squares: float
    brier: float
    brier_squares: float
    bins: tuple[Bin, ...]  # those that hold a row


class Calibration(TypedDict):
    """What a result's JSON says; the intervals are 95 % and over images."""

    num_scored: int
    ece: float
    ece_debiased: float
    rms_debiased: float  # root of squared_error, 0 where that is negative
    nll: float
    nll_interval: list[float]
    brier: float
    brier_interval: list[float]


def calibration(scores: Scores) -> Calibration | None:
    """None where no row has scores."""
    if scores.num == 0:
        return None
    nll = mean_interval(scores.num, scores.nll, scores.nll_squares)
    brier = mean_interval(scores.num, scores.brier, scores.brier_squares)
    return Calibration(
        num_scored=scores.num,
        ece=expected_error(scores.bins),
        ece_debiased=debiased_error(scores.bins),
        rms_debiased=math.sqrt(max(0.0, squared_error(scores.bins))),
        nll=nll.value,
        nll_interval=[nll.low, nll.high],
        brier=brier.value,
        brier_interval=[brier.low, brier.high],
    )


def expected_error(bins: Sequence[Bin]) -> float:
    """Mean over rows of |mean confidence - accuracy| of their bin (Naeini et al. 2015). Biased upwards: of a perfectly
    calibrated model it is above 0, the more so the fewer rows a bin has."""
    return sum(part.num * abs(part.gap) for part in bins) / _total(bins)


def debiased_error(bins: Sequence[Bin]) -> float:
    """The expected error less its estimated bias (Kumar et al. 2019, arXiv:1909.10155, section 5): how much larger
    |gap| becomes on average when each bin's accuracy a is drawn anew from a normal law of variance a (1 - a) / n.

    Deviation: they estimate that average by sampling, here it is the mean of the folded normal law, so that equal rows
    give equal numbers. It can come out below 0. Of a perfectly calibrated model two fifths of the bias go; all of it
    only in the squared error.
    """
    return sum(part.num * (2 * abs(part.gap) - _drawn_anew(part)) for part in bins) / _total(bins)


def squared_error(bins: Sequence[Bin]) -> float:
    """Mean over rows of their bin's squared gap less that square's bias, a (1 - a) / (n - 1) of an accuracy a on n rows
    (Kumar et al. 2019, definition 5.1; Ferro and Fricker 2012): 0 on average of a perfectly calibrated model, so that
    it is negative every other time. Bins of a single row are taken as they are."""
    return sum(part.num * (part.gap**2 - _variance(part)) for part in bins) / _total(bins)


def _variance(part: Bin) -> float:
    accuracy = part.num_correct / part.num
    return accuracy * (1 - accuracy) / max(1, part.num - 1)


def _drawn_anew(part: Bin) -> float:
    """Mean of |x| for x normal about the bin's gap."""
    accuracy = part.num_correct / part.num
    spread = math.sqrt(accuracy * (1 - accuracy) / part.num)
    if spread == 0:
        return abs(part.gap)
    ratio = part.gap / spread
    tails = spread * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2)
    return tails + part.gap * math.erf(ratio / math.sqrt(2))


def _total(bins: Sequence[Bin]) -> int:
    if not bins:
        raise ValueError("no rows with a confidence: nothing to calibrate; judge the images anew")
    return sum(part.num for part in bins)


def bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number of the bin, 0 to NUM_BINS - 1, of each confidence in [0, 1]."""
    return np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def scores_of(confidence: ArrayLike, correct: ArrayLike, nll: ArrayLike, brier: ArrayLike) -> Scores:
    """Of arrays [N]; ValueError where they do not fit together or a confidence is no probability."""
    sure, losses, squares = (np.asarray(values, dtype=np.float64) for values in (confidence, nll, brier))
    right = np.asarray(correct, dtype=bool)
    shapes = {array.shape for array in (sure, right, losses, squares)}
    if len(shapes) != 1 or sure.ndim != 1:
        raise ValueError(f"arrays of shapes {sorted(shapes)}; give four of one length")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("a confidence outside [0, 1]; give the probability of the predicted class")
    place = bin_of(sure)
    counts = np.bincount(place, minlength=NUM_BINS)
    hits = np.bincount(place, weights=right, minlength=NUM_BINS)
    sums = np.bincount(place, weights=sure, minlength=NUM_BINS)
    rows = zip(counts.tolist(), hits.tolist(), sums.tolist(), strict=True)
    return Scores(
        num=len(sure),
        nll=float(losses.sum()),
        nll_squares=float((losses**2).sum()),
        brier=float(squares.sum()),
        brier_squares=float((squares**2).sum()),
        bins=tuple(Bin(num, round(hit), total) for num, hit, total in rows if num),
    )
