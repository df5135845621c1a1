"""TPU topologies by name, such as v5e:2x4: chips in a grid, as libtpu 0.0.51 accepts them (tried one by one)."""

from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

from engine.tpu.chips import find_chip

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8")
CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
SHAPES: Final = MappingProxyType(
    {"v3": ("2x2", "4x4"), "v4": CUBES, "v5e": FLAT, "v5p": CUBES, "v6e": FLAT},
)
# How libtpu joins the cores of a chip. A v4 runs programs on its two cores as one device unless told otherwise.
CONFIGS: Final = MappingProxyType({"v4": "megacore"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where a step is compiled for."""

    name: str
    chip: str
    num_devices: int
    config: str  # of libtpu


def find_topology(name: str) -> Topology:
    """ValueError, with those that there are."""
    chip, _, shape = name.partition(":")
    if shape not in SHAPES.get(chip, ()):
        raise ValueError(f"unknown TPU topology {name!r}; there are {describe()}")
    chips = prod(int(side) for side in shape.split("x"))
    return Topology(
        name=name,
        chip=chip,
        num_devices=chips * find_chip(name).devices_per_chip,
        config=CONFIGS.get(chip, "default"),
    )


def describe() -> str:
    """All of them, in one line."""
    return "; ".join(f"{chip}:{', '.join(shapes)}" for chip, shapes in SHAPES.items())
