"""What an evaluation's rows say beyond right and wrong: calibration of each component, shape bias of a cue conflict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.ledger import Ledger, read_ledger
from engine.metrics.calibration import Calibration, calibration
from engine.metrics.intervals import mean_interval, wilson_interval
from engine.metrics.shape_bias import Cues, ShapeBias, cue_names, is_cue64, shape_bias
from engine.rows import CLEAN


def scores_of(book: Ledger, identity: str, components: Sequence[str]) -> dict[str, Any]:
    """`calibration` by component and `shape_bias`, each only where the rows have it; for a result's JSON."""
    found: dict[str, Any] = {}
    if by_component := calibrations(book, identity, components):
        found["calibration"] = by_component
    if (bias := shape_bias_of(book, identity)) is not None:
        found["shape_bias"] = bias
    return found


def calibrations(book: Ledger, identity: str, components: Sequence[str]) -> dict[str, Calibration]:
    """Of the components whose rows have scores."""
    parts = {name: calibration(book.scores(identity, name)) for name in components}
    return {name: part for name, part in parts.items() if part is not None}


def shape_bias_of(book: Ledger, identity: str) -> ShapeBias | None:
    """Of the images as they are; None unless it is a set of cue conflicts, which the images' names say.

    A class's number is the label of the images of its shape. Of a subset without such images, those with its texture
    are left out.
    """
    found: list[tuple[str, str, int]] = []
    number_of: dict[str, int] = {}
    for name, label, prediction in book.predictions(identity, CLEAN):
        names = cue_names(name)
        if names is None or (names[0] == names[1] and is_cue64(name)):
            return None  # told from the first names, so other sets cost nothing
        number_of[names[0]] = label
        found.append((*names, prediction))
    decisions = (
        (Cues(number_of[shape], number_of[texture]), prediction)
        for shape, texture, prediction in found
        if texture in number_of
    )
    return shape_bias(decisions) if found else None


def interval_over_images(folder: Path, identities: Sequence[str]) -> tuple[float, float] | None:
    """95 % interval of the share that is right over several evaluations of the same images, of the ledger in `folder`:
    over images, each with its mean, for one photograph under 75 corruptions is not 75 photographs. None where the
    images are not the same."""
    names: list[str] = []
    total: NDArray[np.floating[Any]] = np.zeros(0)
    for number, identity in enumerate(identities):
        book = read_ledger(folder, identity)
        keys, correct = book.correct(identity, CLEAN)
        book.close()
        if number and keys != names:
            return None
        names, total = keys, correct + (total if number else 0.0)
    means = total / len(identities)
    if means.min() == means.max():  # no variance to tell from
        return wilson_interval(round(float(means.sum())), len(means))
    found = mean_interval(len(means), float(means.sum()), float((means**2).sum()))
    return max(0.0, found.low), min(1.0, found.high)
