"""What the report knows about runs: plain frozen values, made by results.py, progress.py and gather.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.ledger import wilson_interval
from engine.metrics.calibration import Calibration
from engine.metrics.shape_bias import ShapeBias

Plain = str | int | float | bool | None
RAW, EMA = "raw", "ema"


class Share(NamedTuple):
    """`correct` of `num` images."""

    correct: int
    num: int
    ends: tuple[float, float] | None = (
        None  # of the interval, where the images are not independent of each other
    )

    @property
    def value(self) -> float:
        return self.correct / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval, or the one that was given."""
        return self.ends or wilson_interval(self.correct, self.num)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """One picture's label and, for each component of its evaluation, the class that was predicted."""

    label: int
    predictions: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Kept images of an evaluation, n of them; `verdicts` has one entry each."""

    names: tuple[str, ...]
    image: NDArray[np.uint8]  # [n,3,H,W]
    attacked: NDArray[np.float32] | None  # [n,3,H,W] in [0,1]
    verdicts: tuple[Verdicts, ...]
    component: str  # the attack's component in the ledger, or that of the images as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A result whose numbers are those of the ledger."""

    name: str  # clean, digits-noise, pgd20_linf16
    file: str  # stem of results/*.json
    weights: str  # raw or ema
    epoch: int | None  # None: after the last one
    id: str
    recipe: str  # hash of the recipe that trained the weights; empty in early results
    weights_sha256: str
    suite: str
    subset: int | None  # images of the fixed subset; None: all
    dataset: str
    contract: str
    attack: tuple[tuple[str, Plain], ...]  # settings by name; empty for a suite
    seed: int
    precision: str
    share: Share  # right in all components
    before: Share  # right as they are, before any attack
    pictures: Pictures | None
    calibration: Calibration | None = None  # of the images as they are; rows of older versions have none
    shape_bias: ShapeBias | None = None  # of sets of cue conflicts
    errors: Mapping[str, Sequence[float]] = field(
        default_factory=dict
    )  # of a set with parts: kind -> by severity
    mce: float | None = None

    def setting(self, name: str) -> Plain:
        return dict(self.attack).get(name)

    @property
    def norm(self) -> str:
        return str(self.setting("norm") or "")

    @property
    def eps(self) -> float:
        return float(self.setting("eps") or 0.0)

    @property
    def step_size(self) -> float:
        return float(self.setting("step_size") or 0.0)

    @property
    def is_random(self) -> bool:
        """Whether the seed has a say in it: only attacks with a random start draw numbers."""
        return bool(self.attack) and self.setting("random_start") is not False


class TrainPoint(NamedTuple):
    """One report of the training; None where the log has no finite number."""

    epoch: float
    step: int
    loss: float | None
    top1: float | None
    lr: float | None
    images_per_s: float | None


State = Literal["finished", "unfinished", "not trained here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the log says: how far the run came, when, and its training curve."""

    state: State
    detail: str  # "step 300 of 528; stopped by a signal"
    started: float | None  # seconds since 1970, of the first start
    busy_s: float | None  # in training and evaluations of `train`, pauses between starts left out
    points: tuple[TrainPoint, ...]
    recipes: tuple[str, ...]  # hashes the starts named
    norm_stats: str | None = None  # which images were normalised together, as the last start said
    compiled: str | None = None  # graphs, reads and fallbacks since the last start, where XLA ran


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """One run."""

    name: str  # the folder's, with parents where two are the same
    folder: Path
    recipe_text: str
    recipe: Mapping[str, object]  # dotted name -> value
    environment: Mapping[str, object]
    progress: Progress
    evaluations: tuple[Evaluation, ...]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    receipt: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # its parts planned and used

    @property
    def final(self) -> tuple[Evaluation, ...]:
        return tuple(e for e in self.evaluations if e.epoch is None)
