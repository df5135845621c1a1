"""The lanes of an attack on disk, beside the ledger: so that a kill in the middle of 5,000 queries does not lose them.

A file is only used where evaluation, block, component and number of lanes fit. It is a shortcut and never the truth:
without it, or with an old one, the same verdicts come out, because an image's answer depends on its question alone.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bits.checkpoint import write_atomic
from robust.lanes import Component, Lanes
from robust.stage import EMPTY, Slot, Stage

_MOST_SHARE = 0.02  # of the time that may be spent on keeping lanes
_SLOTS = "slots"


@dataclass(slots=True, kw_only=True)
class LaneKeeper:
    """Keeps the lanes of this process's stage every `every_s` seconds in `folder`/lanes-`rank`.safetensors."""

    folder: Path
    rank: int
    evaluation: str
    every_s: float
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._next = time.monotonic() + self.every_s

    def look(self, stage: Stage, block: int) -> None:
        """Between two chunks: keeps the lanes if it is time."""
        if time.monotonic() >= self._next:
            self.keep(stage, block)

    def keep(self, stage: Stage, block: int) -> None:
        began = time.monotonic()
        tensors = _flat(stage.state) | {_SLOTS: torch.tensor(stage.slots)}
        facts = self._facts(stage, block)
        write_atomic(self._path, save({n: t.cpu().contiguous() for n, t in tensors.items()}, facts))
        now = time.monotonic()
        self._next = now + max(self.every_s, (now - began) / _MOST_SHARE)

    def restore(self, stage: Stage, block: int, done: set[int]) -> bool:
        """Puts `stage` where a file that fits has it; `done` are rows that have been answered since."""
        facts = self._facts(stage, block)
        for path in sorted(self.folder.glob("lanes-*.safetensors")):
            tensors = _read(path, facts)
            state = None if tensors is None else _state(stage, tensors)
            if tensors is None or state is None:
                continue
            slots = (Slot(*slot) for slot in tensors[_SLOTS].tolist())
            stage.slots = [Slot(EMPTY, 0, 0) if slot.row in done else slot for slot in slots]
            stage.state = state
            return True
        return False

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.folder / f"lanes-{self.rank}.safetensors"

    def _facts(self, stage: Stage, block: int) -> dict[str, str]:
        return {
            "evaluation": self.evaluation,
            "block": str(block),
            "component": stage.component.name,
            "lanes": str(stage.num_lanes),
            "images": str(len(stage.keys)),
        }


def _flat(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested NamedTuple by dotted names."""
    found: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        found |= {prefix + name: value} if isinstance(value, Tensor) else _flat(value, f"{prefix}{name}.")
    return found


def _read(path: Path, facts: dict[str, str]) -> dict[str, Tensor] | None:
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return load(data) if header.get("__metadata__") == facts else None
    except (OSError, ValueError, SafetensorError):
        return None


def _state(stage: Stage, tensors: dict[str, Tensor]) -> Any | None:
    """The component's state with these tensors; None where they are of another program's."""
    template = _template(stage.component, stage.image.shape[1:])
    wanted = _flat(template)
    named = {name: tensors[name] for name in wanted if name in tensors}
    fits = len(named) == len(wanted) and all(
        t.dtype == wanted[n].dtype and t.shape == (stage.num_lanes, *wanted[n].shape[1:])
        for n, t in named.items()
    )
    return _filled(template, {n: stage.device.feed(t) for n, t in named.items()}) if fits else None


def _template(component: Component, shape: torch.Size) -> Any:
    """A state of one lane, on the host: for its structure."""
    none = torch.zeros(1, dtype=torch.int64)
    clean = torch.zeros(1, *shape)
    return component.init(Lanes(clean=clean, label=none, target=none, eps=torch.zeros(1), seed=none))


def _filled(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    values = (
        tensors[prefix + name] if isinstance(value, Tensor) else _filled(value, tensors, f"{prefix}{name}.")
        for name, value in template._asdict().items()
    )
    return type(template)(*values)
