"""Atomic, checksummed checkpoints: a torn or altered file is noticed, and the one before it is used.

`step-00000120.pt` holds the state; `step-00000120.json` holds its size, sha256 and a few facts, and is
written first: the rename of the .pt is the commit, so a run killed at any moment leaves no .pt that cannot be
judged. Each is written beside its place, flushed to disk and renamed.
"""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
BEST = "best.pt"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: the path, what is wrong, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint: where it is and what its JSON says."""

    path: Path
    step: int
    sha256: str
    size: int
    facts: Mapping[str, Any]


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], *, facts: Mapping[str, Any]
) -> Checkpoint:
    """Writes `state` (tensors and plain values) as the checkpoint of `step`; `facts` must be JSON values."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    meta = {"schema": SCHEMA, "step": step, "sha256": digest, "size": len(data), "facts": dict(facts)}
    # Over an older file of this step there is a moment with the new checksum and the old state: seen as torn.
    write_atomic(path.with_suffix(".json"), json.dumps(meta, indent=1).encode())
    write_atomic(path, data)
    return Checkpoint(path=path, step=step, sha256=digest, size=len(data), facts=dict(facts))


def write_atomic(path: Path, data: bytes) -> None:
    """All or nothing, also over a power cut: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_meta(path: Path) -> Checkpoint:
    """The facts of checkpoint `path` (.pt), without reading its tensors. CheckpointError if unusable."""
    meta_path = path.with_suffix(".json")
    try:
        meta = json.loads(meta_path.read_bytes())
        if meta["schema"] != SCHEMA:
            raise CheckpointError(f"{path}: checkpoint schema {meta['schema']}, this version reads {SCHEMA}")
        return Checkpoint(
            path=path, step=meta["step"], sha256=meta["sha256"], size=meta["size"], facts=meta["facts"]
        )
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: {meta_path.name} is missing beside it; use an earlier checkpoint"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise CheckpointError(f"{meta_path}: not the JSON of a checkpoint; use an earlier one") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in `path`, whose size and sha256 must be those of its JSON. CheckpointError if altered."""
    meta = read_meta(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing; use an earlier checkpoint") from None
    if len(data) != meta.size or hashlib.sha256(data).hexdigest() != meta.sha256:
        raise CheckpointError(
            f"{path}: {len(data)} bytes do not match the committed sha256 ({meta.size} bytes): the file is "
            "torn or altered; delete it and use an earlier checkpoint"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds Python objects beside tensors and plain values, which could run code when "
            "loaded; use a checkpoint of this toolkit"
        ) from None
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Paths of all step checkpoints, oldest first, usable or not."""
    return sorted(folder.glob("step-*.pt"))


def latest_checkpoint(folder: Path) -> tuple[Checkpoint, dict[str, Any], list[str]] | None:
    """The newest usable checkpoint, its state, and one line for each newer one that was passed over."""
    passed_over: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_meta(path), load_checkpoint(path), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError(f"{folder}: no usable checkpoint; {passed_over[0]}")
    return None


def is_whole(path: Path) -> bool:
    """Whether `path` is the checkpoint that its JSON describes; its tensors are not looked at."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == read_meta(path).sha256
    except (CheckpointError, OSError):
        return False


def keep_best(
    folder: Path, step: int, *, metric: str, value: float, before: Callable[[], None] = lambda: None
) -> bool:
    """Makes the checkpoint of `step` `best.pt` too when `value` is above that of the one there, or when that one
    is torn or of another metric. True when it did; `before` is called first then. Larger is better; the first of
    equals stays.
    """
    path = folder / BEST
    try:
        there = read_meta(path)
        is_better = there.facts.get("metric") != metric or not value <= there.facts.get("value", -1.0)
        if not is_better and is_whole(path):
            return False
    except (CheckpointError, OSError):
        pass  # none yet, or one whose writing was cut off
    before()
    source = folder / f"step-{step:08d}.pt"
    meta = json.loads(source.with_suffix(".json").read_text())
    meta["facts"] |= {"metric": metric, "value": value}
    write_atomic(path.with_suffix(".json"), json.dumps(meta, indent=1).encode())
    write_atomic(path, source.read_bytes())
    return True


def prune_checkpoints(folder: Path, keep: int, *, newest: int) -> None:
    """Deletes all but the last `keep` checkpoints up to step `newest`, which was just written, and what
    killed writes left behind.

    Later ones were passed over when the run went on, so they are neither counted nor deleted. The .pt goes
    first: none is ever there without its JSON.
    """
    assert keep > 0, f"keep {keep}"
    written = [path for path in list_checkpoints(folder) if path.stem <= f"step-{newest:08d}"]
    for path in written[:-keep]:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    for pattern in (".step-*.part", ".best.*.part"):
        for part in folder.glob(pattern):
            part.unlink(missing_ok=True)
