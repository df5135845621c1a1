"""The lanes of an attack on disk, beside the ledger: so that a kill in the middle of 5,000 queries does not lose them.

A file is only used where evaluation, block, component and number of lanes fit, and its checksum is right. It is a
shortcut and never the truth: without it, or with an old one, the same verdicts come out, because an image's answer
depends on its question alone.
"""

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from robust.lanes import Component, Lanes
from robust.stage import EMPTY, Answer, Slot, Stage

MOST_SHARE = 0.05  # of the time that may be spent on keeping lanes
_SLOTS, _PENDING, _POINTS = "slots", "pending", "points"
_CLEAN = "lanes.clean"  # images that are at hand anyway


@dataclass(slots=True, kw_only=True)
class LaneKeeper:
    """Keeps the lanes of this process's stage after each chunk in `folder`/lanes-`rank`.safetensors; less often where
    that would cost more than MOST_SHARE of the time, so that a kill loses a chunk at most, or 20 times what keeping
    costs."""

    folder: Path
    rank: int
    evaluation: str
    _next: float = field(init=False, default=0.0)

    def look(self, stage: Stage, block: int) -> None:
        """Between two chunks: keeps the lanes if it is time."""
        if time.monotonic() >= self._next:
            self.keep(stage, block)

    def keep(self, stage: Stage, block: int) -> None:
        began = time.monotonic()
        # Copies: a step may leave one tensor in two places of the state, and a file of safetensors takes each once.
        tensors = {name: _copied(t) for name, t in _kept(stage).items()}
        facts = self._facts(stage, block) | {"crc32": _checksum(tensors)}
        # A kill leaves what was written to the system to write; a power cut may tear it, which the checksum tells.
        temporary = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(tensors, temporary, facts)
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        now = time.monotonic()
        self._next = now + (now - began) / MOST_SHARE

    def restore(self, stage: Stage, block: int, done: set[int]) -> bool:
        """Puts `stage` where a file that fits has it; `done` are rows that have been answered since."""
        facts = self._facts(stage, block)
        for path in sorted(self.folder.glob("lanes-*.safetensors")):
            tensors = _read(path, facts)
            if tensors is not None and _put(stage, tensors, done):
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


def _copied(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _kept(stage: Stage) -> dict[str, Tensor]:
    """Where the lanes stand, and the points that wait for a verdict: shapes are always the same."""
    rows = [answer.row for answer in stage.pending]
    place = stage.device.feed(torch.tensor(rows + [0] * (stage.num_lanes - len(rows))))
    pending = [[a.row, a.number, a.steps] for a in stage.pending]
    tensors = _flat(stage.state) | {_POINTS: stage.adversarial.index_select(0, place)}
    stage.device.cut()
    del tensors[_CLEAN]
    own = {_SLOTS: torch.tensor(stage.slots), _PENDING: torch.tensor(pending).reshape(-1, 3)}
    return tensors | own


def _put(stage: Stage, tensors: dict[str, Tensor], done: set[int]) -> bool:
    """Whether the tensors were this component's, and `stage` has them now."""
    slots = [Slot(*slot) for slot in tensors[_SLOTS].tolist()]
    place = stage.device.feed(torch.tensor([max(slot.row, 0) for slot in slots]))
    tensors[_CLEAN] = stage.image.index_select(0, place)
    state = _state(stage, tensors)
    if state is None:
        return False
    stage.slots = [Slot(EMPTY, 0, 0) if slot.row in done else slot for slot in slots]
    stage.state = state
    pending = [Answer(row, number, True, steps, True) for row, number, steps in tensors[_PENDING].tolist()]
    stage.pending = [answer for answer in pending if answer.row not in done]
    if pending:
        rows = [answer.row for answer in pending]
        points = stage.adversarial.cpu()
        points[torch.tensor(rows)] = tensors[_POINTS][: len(rows)]
        stage.adversarial = stage.device.feed(points)
    return True


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return str(value)


def _flat(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a nested NamedTuple by dotted names."""
    found: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        found |= {prefix + name: value} if isinstance(value, Tensor) else _flat(value, f"{prefix}{name}.")
    return found


def _read(path: Path, facts: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The file's tensors; None where it is about something else, or torn."""
    try:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found = header.get("__metadata__") or {}
        if {**facts, "crc32": found.get("crc32")} != found:
            return None
        tensors = load(data)
        return tensors if found["crc32"] == _checksum(tensors) else None
    except (OSError, ValueError, SafetensorError):
        return None


def _state(stage: Stage, tensors: Mapping[str, Tensor]) -> Any | None:
    """The component's state with these tensors; None where they are of another program's."""
    template = _template(stage.component, stage.image.shape[1:])
    wanted = _flat(template)
    named = {name: tensors[name] for name in wanted if name in tensors}
    fits = len(named) == len(wanted) and all(
        t.dtype == wanted[n].dtype and t.shape == (stage.num_lanes, *wanted[n].shape[1:])
        for n, t in named.items()
    )
    fed = {n: t if n == _CLEAN else stage.device.feed(t) for n, t in named.items()}
    return _filled(template, fed) if fits else None


def _template(component: Component, shape: Sequence[int]) -> Any:
    """A state of one lane, on the host: for its structure."""
    none = torch.zeros(1, dtype=torch.int64)
    clean = torch.zeros(1, *shape)
    return component.init(Lanes(clean=clean, label=none, target=none, eps=torch.zeros(1), seed=none))


def _filled(template: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    values = (
        tensors[prefix + name] if isinstance(value, Tensor) else _filled(value, tensors, f"{prefix}{name}.")
        for name, value in template._asdict().items()
    )
    return type(template)(*values)
