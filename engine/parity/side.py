"""One side of a comparison: a backend, how many devices, what it changes in the recipe, and for tests a fault."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, cast, get_args

from torch import nn

from bits.state import TrainState
from data.batch import Batch

Backend = Literal["cpu", "cuda", "xla", "tpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FLAG = "--backends"
_BETWEEN_SIDES = re.compile(r",(?![^\[({]*[\])}])")  # not inside a list
_BETWEEN_OVERRIDES = re.compile(r":(?=[a-z_]+(?:\.[a-z_]+)+=)")


class Tamper:
    """Where a fault can be planted in one side, to see that it is found. This one plants none."""

    def seed(self, value: int) -> int:
        """Of the device's generator, in a step."""
        return value

    def batch(self, batch: Batch) -> Batch:
        """As it is fed."""
        return batch

    def gradients_(self, model: nn.Module) -> None:
        """Before they are looked at."""

    def updated_(self, state: TrainState) -> None:
        """After the update, before it is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A backend as the recipe is run on it."""

    backend: Backend
    num_devices: int = 1
    overrides: tuple[str, ...] = ()
    tamper: Tamper = field(default_factory=Tamper)

    @property
    def label(self) -> str:
        """As the user wrote it."""
        devices = (str(self.num_devices),) if self.num_devices > 1 else ()
        return ":".join((self.backend, *devices, *self.overrides))


def parse_sides(text: str) -> tuple[Side, ...]:
    """`BACKEND[:DEVICES][:key=value]...`, comma-separated, the reference first. ValueError for what cannot be."""
    sides = tuple(_parse(word.strip()) for word in _BETWEEN_SIDES.split(text))
    if len(sides) < 2:
        raise ValueError(f"{FLAG} {text}: one backend has nothing to be compared with; write {FLAG} cpu,xla")
    if len({side.label for side in sides}) < len(sides):
        raise ValueError(
            f"{FLAG} {text} names one side twice; leave one out, or change something: "
            f"{sides[0].backend}:run.precision=bf16"
        )
    return sides


def _parse(word: str) -> Side:
    name, *rest = _BETWEEN_OVERRIDES.split(word)
    name, _, devices = name.partition(":")
    if name not in BACKENDS:
        raise ValueError(f"{FLAG}: unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    backend, num_devices = cast(Backend, name), 1
    if devices and not devices.isdecimal():
        raise ValueError(
            f"{FLAG} {word}: {devices!r} is neither a number of devices nor key=value; write xla:4, or "
            f"{name}:run.precision=bf16"
        )
    if devices:
        num_devices = int(devices)
        if num_devices < 1 or (num_devices > 1 and backend != "xla"):
            raise ValueError(f"{FLAG} {word}: several devices in one process need xla; write {name} or xla:4")
    return Side(backend=backend, num_devices=num_devices, overrides=tuple(rest))


def check_available(sides: Sequence[Side]) -> None:
    """ValueError for a backend that is not on this machine."""
    import torch

    from engine.launch import check_torch_xla

    backends = [side.backend for side in sides]
    if "cuda" in backends and not torch.cuda.is_available():
        raise ValueError(f"{FLAG}: this machine has no CUDA device; leave cuda out")
    if "xla" in backends:
        check_torch_xla()
    if "tpu" in backends and (reason := import_module("bits.tpu").missing()):
        raise ValueError(f"{FLAG}: backend tpu: {reason}; leave tpu out")
