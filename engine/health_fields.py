"""The section `run.health`: what a run does about updates that are not finite and about catastrophic overfitting."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from engine.values import Probability, Section


class HealthSection(Section):
    """All of it counted in updates and never in time, so that a run that was killed decides as one that was not."""

    max_skips: PositiveInt | None = (
        10  # updates left out in a row, for a gradient that is not finite, before the run goes back; None: none
    )
    max_rollbacks: NonNegativeInt = 2  # one more ends the run
    rollback_lr: Annotated[float, Field(gt=0, le=1)] = 0.5  # factor of the learning rate for each time back
    every: PositiveInt | None = None  # updates between two checks of an adversarial training; None: no checks
    images: PositiveInt = 64  # of a batch, over all processes, in a check
    steps: PositiveInt = 10  # of the PGD in a check
    max_gap: Annotated[float, Field(gt=0, le=1)] = 0.25  # accuracy under FGSM minus that under PGD
    min_share: Probability = 0.5  # of the best accuracy under PGD so far
    patience: PositiveInt = 2  # checks beyond either limit, in a row, that make an alarm
    rollback: bool = False  # an alarm also goes back to the last healthy checkpoint
