"""The checkpoints that a run can go back to, by their names.

`checkpoints/healthy-N.pt` is a second name of a scheduled checkpoint in which no update was being left out and, where
the training is checked, behind which a check found nothing; until that check it is `candidate-N.pt`. Checkpoints of a
stop or of an evaluation do not count: they come when somebody asks, and a run that was killed must go back to the
same place as one that was not.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from bits.checkpoint import Checkpoint, CheckpointError, list_checkpoints, load_checkpoint, read_meta


def name_candidate(folder: Path, step: int) -> None:
    """The checkpoint of `step` may turn out healthy."""
    _drop(folder, "candidate-*")
    link_checkpoint(folder / f"step-{step:08d}.pt", folder / f"candidate-{step:08d}.pt")


def promote_candidate(folder: Path, *, until: int) -> None:
    """It did; nothing happens where there is none of a step up to `until`."""
    for path in sorted(folder.glob("candidate-*.pt")):
        if path.stem > f"candidate-{until:08d}":
            continue
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


def earliest_return(folder: Path, *, now: int) -> int:
    """A step behind which no way back can lead: that of the healthy checkpoint, else of the candidate, else `now`."""
    for name in ("healthy", "candidate"):
        if found := sorted(folder.glob(f"{name}-*.pt")):
            return step_of(found[-1])
    return now


def forget_names_after(folder: Path, step: int) -> None:
    """A run that goes on from `step` has not come to what healthy checkpoints and candidates lie behind it."""
    for name in ("candidate", "healthy"):
        for path in folder.glob(f"{name}-*"):
            if path.stem > f"{name}-{step:08d}":
                path.unlink(missing_ok=True)


def forget_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints behind `step`, which the run leaves, and the candidate."""
    _drop(folder, "candidate-*")
    forget_names_after(folder, step)
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """Of a file called NAME-STEP.pt."""
    return int(path.stem.rpartition("-")[2])


def link_checkpoint(source: Path, target: Path) -> None:
    """A second name of checkpoint `source` (.pt) and its JSON, as checkpoints are written: the .pt is the commit."""
    for suffix in (".json", ".pt"):
        _link(source.with_suffix(suffix), target.with_suffix(suffix))


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
