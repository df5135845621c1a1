"""Effective robustness: how far a model lies above what models of its clean accuracy usually reach on a shifted set
(Taori et al. 2020, arXiv:2007.00644).

"Usually" is a straight line on logit axes, fitted to public results: accuracies on both sets move together there. The
stored ones are in public_results.yaml, with their sources; a table of your own in the same form is read as well.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypedDict

import yaml

TABLE: Final = Path(__file__).with_name("public_results.yaml")
_FEWEST: Final = 5  # models of a line


class Point(NamedTuple):
    """Accuracies in (0, 1) of one model."""

    clean: float
    shifted: float


class Line(NamedTuple):
    """logit(shifted) = slope * logit(clean) + intercept."""

    slope: float
    intercept: float
    residual: float  # standard deviation of the models about it, in logits
    lowest: float  # clean accuracies of the models: outside of these the line is a guess
    highest: float
    num_models: int

    def expected(self, clean: float) -> float:
        """The accuracy that a model of this clean accuracy usually has on the shifted set."""
        return _expit(self.slope * logit(clean) + self.intercept)


class Baselines(NamedTuple):
    """Public results on one shifted set."""

    points: Mapping[str, Point]
    source: str


class Effective(TypedDict):
    """Shares, not per cent. `value` is effective robustness: shifted accuracy less the expected one."""

    value: float
    expected: float
    interval: list[float]  # of `value`, from the 95 % interval of the shifted accuracy alone
    is_inside: bool  # the clean accuracy lies within those of the line's models
    num_models: int


def load_baselines(path: Path = TABLE) -> dict[str, Baselines]:
    """Suite -> its public results. ValueError that names file, suite and model for what is no pair of percentages."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {str(suite): _baselines(str(suite), entry) for suite, entry in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: {' '.join(str(error).split())}; write "
            "`suite: {source: TEXT, models: {NAME: [CLEAN, SHIFTED]}}` in per cent"
        ) from None


def _baselines(suite: str, entry: Mapping[str, object]) -> Baselines:
    models = entry["models"]
    if not isinstance(models, Mapping):
        raise ValueError(f"{suite}: models is no mapping")
    return Baselines(
        {str(name): _point(f"{suite}: {name}", pair) for name, pair in models.items()}, str(entry["source"])
    )


def _point(where: str, pair: object) -> Point:
    if not isinstance(pair, list) or len(pair) != 2 or any(isinstance(v, bool) for v in pair):
        raise ValueError(f"{where}: {pair!r} is no pair of percentages")
    clean, shifted = (float(value) / 100 for value in pair)
    if not (0 < clean < 1 and 0 < shifted < 1):
        raise ValueError(f"{where}: {pair!r} must lie between 0 and 100, both ends excluded")
    return Point(clean, shifted)


def fit_line(points: Sequence[Point]) -> Line:
    """Least squares on logit axes. ValueError for fewer than five models, or all of one clean accuracy."""
    if len(points) < _FEWEST:
        raise ValueError(f"{len(points)} models: a line needs {_FEWEST} or more")
    x = [logit(point.clean) for point in points]
    y = [logit(point.shifted) for point in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    if spread == 0:
        raise ValueError("all models have one clean accuracy: no line goes through them")
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    squares = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    clean = [point.clean for point in points]
    return Line(slope, intercept, math.sqrt(squares / (len(x) - 2)), min(clean), max(clean), len(points))


def effective_robustness(
    line: Line, clean: float, shifted: float, interval: tuple[float, float]
) -> Effective | None:
    """`interval`: of the shifted accuracy. None where the clean accuracy is 0 or 1 and has no logit."""
    if not (0 <= clean <= 1 and 0 <= shifted <= 1):
        raise ValueError(f"accuracies {clean}, {shifted}: give shares from 0 to 1, not per cent")
    if clean in (0, 1):
        return None
    expected = line.expected(clean)
    return Effective(
        value=shifted - expected,
        expected=expected,
        interval=[end - expected for end in interval],
        is_inside=line.lowest <= clean <= line.highest,
        num_models=line.num_models,
    )


def logit(share: float) -> float:
    """ValueError outside (0, 1)."""
    if not 0 < share < 1:
        raise ValueError(f"accuracy {share} has no logit; it must lie between 0 and 1, both excluded")
    return math.log(share / (1 - share))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
