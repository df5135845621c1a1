"""An evaluation set that is open: its shards, how its images reach the model, and how logits are judged on it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.batch import Batch
from data.index import DatasetIndex
from data.transform import EvalTransform
from engine.view import PLAIN, View

Change = Callable[[Tensor, Batch], Tensor]
"""Images float32 [N,3,H,W] in [0,1] and their batch to other images, on the device, with static shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """A suite, or one part of it."""

    suite: str  # id; of a part ID/KIND/SEVERITY
    index: DatasetIndex  # of a suite with parts: the first one's
    transform: EvalTransform
    protocol: str = "default"
    views: tuple[View, ...] = (PLAIN,)  # the first one is the headline
    judged: NDArray[np.int64] | None = None  # positions; None: all of them
    change: Change | None = None  # what is done to images on the device
    change_id: str = ""  # its words in the contract
    parts: tuple["EvalSet", ...] = ()
    missing: tuple[str, ...] = ()  # parts that a whole one has
    notes: tuple[str, ...] = ()  # what makes a number less than it seems, a line each

    @property
    def num_images(self) -> int:
        """That are judged, over all parts."""
        if self.parts:
            return sum(part.num_images for part in self.parts)
        return self.index.num_samples if self.judged is None else len(self.judged)
