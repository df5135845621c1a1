"""HBM of a step, and how many images a device could take: an estimate from one or more compiled batches."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import lcm
from typing import Any, NamedTuple

from engine.build import mix_settings
from engine.recipe import Recipe
from engine.tpu.chips import GIB, Chip
from models.norm import parse_norm_stats

LARGEST = 1 << 14  # images
USED = re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMG]) of (?P<limit>[\d.]+)(?P<limit_unit>[KMG]) hbm")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": GIB}


class Point(NamedTuple):
    """HBM of one compiled batch."""

    batch: int
    fixed: int  # bytes that do not depend on the batch
    temp: int  # bytes taken to grow with it

    @property
    def total(self) -> int:
        return self.fixed + self.temp


def point_of(answer: Mapping[str, Any]) -> Point | None:
    """Of a compiler's answer; also of one that says how much HBM was missing. None where it tells nothing."""
    batch = int(answer["batch_per_device"])
    if answer["ok"]:
        memory = answer["memory"]
        fixed = memory["argument"] + memory["output"] - memory["alias"] + memory["code"]
        return Point(batch, int(fixed), int(memory["temp"]))
    found = USED.search(answer.get("error") or "")
    return None if found is None else Point(batch, 0, int(float(found["used"]) * UNITS[found["unit"]]))


def batch_unit(recipe: Recipe) -> int:
    """A device's batch must be a multiple of this: pairs that are mixed, groups of a norm."""
    stats = parse_norm_stats(recipe.model.norm_stats)
    mixes = any(mix_settings(recipe, epoch).is_on for epoch in range(recipe.run.epochs))
    return lcm(2 if mixes else 1, stats.group_size or 1, stats.groups or 1)


def suggest_batch(points: Sequence[Point], chip: Chip, *, unit: int) -> int | None:
    """The largest batch of a device that should fit; None where not even `unit` images should.

    The memory that grows is a line through two compiled batches, or, of one alone, through nothing at no images,
    which promises too little rather than too much.
    """
    first, last = min(points), max(points)
    if last.batch > first.batch:
        slope = max(0, last.temp - first.temp) / (last.batch - first.batch)
        start = last.total - slope * last.batch
    else:
        slope, start = last.temp / last.batch, float(last.fixed)
    sizes = [size for size in _sizes(unit) if start + slope * size <= chip.usable_bytes]
    return max(sizes, default=None)


def _sizes(unit: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, ...: those that are multiples of `unit`, and `unit` times them."""
    steps = [1, *(n << k for k in range(LARGEST.bit_length()) for n in (2, 3))]
    for size in {size for n in steps for size in (n, n * unit)}:
        if size % unit == 0 and size <= LARGEST:
            yield size
