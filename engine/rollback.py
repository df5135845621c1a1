"""Going back to the last healthy checkpoint: which one that is, and what is different afterwards.

`checkpoints/healthy-N.pt` is a second name of a scheduled checkpoint in which no update was being left out and, where
the training is checked, behind which a check found nothing; until that check it is `candidate-N.pt`. Checkpoints of a
stop or of an evaluation do not count: they come when somebody asks, and a run that was killed must go back to the
same place as one that was not.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bits.checkpoint import Checkpoint, CheckpointError, list_checkpoints, load_checkpoint, read_meta
from data.batch import Batch
from data.order import hash64


class RollBack(Exception):
    """The training must go back; `reason` in words, `first` the step (from 0) where it went wrong."""

    def __init__(self, reason: str, *, first: int) -> None:
        super().__init__(reason)
        self.reason, self.first = reason, first


def name_candidate(folder: Path, step: int) -> None:
    """The checkpoint of `step` may turn out healthy."""
    _drop(folder, "candidate-*")
    for suffix in (".json", ".pt"):  # as checkpoints are written: the .pt is the commit
        _link(folder / f"step-{step:08d}{suffix}", folder / f"candidate-{step:08d}{suffix}")


def promote_candidate(folder: Path) -> None:
    """It did; nothing happens where there is none."""
    for path in sorted(folder.glob("candidate-*.pt")):
        healthy = path.with_name(path.name.replace("candidate", "healthy"))
        if path.with_suffix(".json").exists():  # or a promotion was cut off behind its first half
            os.replace(path.with_suffix(".json"), healthy.with_suffix(".json"))
        os.replace(path, healthy)
        for older in folder.glob("healthy-*"):
            if older.stem != healthy.stem:
                older.unlink(missing_ok=True)


def find_healthy(folder: Path, *, until: int | None = None) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The last healthy checkpoint, up to step `until`, and its state; None where there is none."""
    for path in sorted(folder.glob("healthy-*.pt"), reverse=True):
        if until is not None and path.stem > f"healthy-{until:08d}":
            continue
        try:
            return read_meta(path), load_checkpoint(path)
        except CheckpointError:
            continue
    return None


def forget_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints behind `step`, which the run leaves."""
    _drop(folder, "candidate-*")
    for path in list_checkpoints(folder):
        if path.stem > f"step-{step:08d}":
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def reseeded(batch: Batch, rollbacks: int) -> Batch:
    """The batch of the `rollbacks`-th way through the same data: whatever the device draws for it is drawn anew.

    Order, crops and mixing stay: they are made by the loader before anybody knows.
    """
    if not rollbacks:
        return batch
    salt = np.array(hash64("rollback", rollbacks)).view(np.int64)
    return batch._replace(seed=batch.seed ^ torch.tensor(int(salt), dtype=torch.int64))


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)  # checkpoints are replaced and never written into, so this costs no space
    except OSError:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        os.replace(part, target)


def _drop(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
