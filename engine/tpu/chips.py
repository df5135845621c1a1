"""TPU chips: what a device holds and how fast it is at best, from public pages, per JAX device.

Chip figures (peak bf16 TFLOP/s, HBM, HBM bandwidth), of docs.cloud.google.com/tpu/docs/:
    v3   123 TFLOP/s, 32 GiB,  900 GB/s   /v3: two cores, 16 GiB each, and a core is a device
    v4   275 TFLOP/s, 32 GiB, 1200 GB/s   /v4: two cores that act as one device ("megacore")
    v5e  197 TFLOP/s, 16 GB,   819 GB/s   /v5e
    v5p  459 TFLOP/s, 95 GB,  2765 GB/s   /v5p
    v6e  918 TFLOP/s, 32 GB,  1638 GB/s   /v6e
A program cannot have all of the HBM: the runtime keeps a part, 0.25 to 1.25 GiB in the compiler's own messages ("of
15.75G hbm" on v5e, "reserved 1.25G" on v4), hence KEPT_GIB.

A topology description of v3 lists cores, and one of v4 too (v4:2x2x1 is 4 chips and 8 entries) unless libtpu is told
to join them ("megacore", as real v4 machines do). What fits a core of v4 fits the chip; its time says little.
"""

import re
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

GIB = 1 << 30
KEPT_GIB = 1.25  # of HBM, at most, that a program cannot have
TOPOLOGY = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d+(?:x\d+){1,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A kind of TPU; figures of one JAX device."""

    name: str
    hbm_gib: float
    tflops: float  # peak, bf16
    gb_per_s: float  # HBM, in 10^9 bytes
    source: str
    devices_per_chip: int = 1  # JAX devices

    @property
    def hbm_bytes(self) -> int:
        return int(self.hbm_gib * GIB)

    @property
    def usable_bytes(self) -> int:
        """Of HBM, for a program."""
        return int((self.hbm_gib - KEPT_GIB) * GIB)

    def note(self, topology: str, num_devices: int) -> str | None:
        """What has to be said beside figures of `num_devices` devices of a topology; None where a device is a chip."""
        if self.devices_per_chip > 1:
            return f"{self.name}: a device is one of the chip's {self.devices_per_chip} cores"
        if num_devices > num_chips(topology):
            return (
                f"{self.name}: compiled for one of the chip's two cores, which a real chip runs as one device; HBM is "
                "the chip's, times are indicative"
            )
        return None


def _chip(name: str, hbm_gib: float, tflops: float, gb_per_s: float, *, devices: int = 1) -> Chip:
    return Chip(
        name=name,
        hbm_gib=hbm_gib / devices,
        tflops=tflops / devices,
        gb_per_s=gb_per_s / devices,
        source=f"https://docs.cloud.google.com/tpu/docs/{name}",
        devices_per_chip=devices,
    )


CHIPS: Final = MappingProxyType(
    {
        chip.name: chip
        for chip in (
            _chip("v3", 32, 123, 900, devices=2),
            _chip("v4", 32, 275, 1200),
            _chip("v5e", 16, 197, 819),
            _chip("v5p", 95, 459, 2765),
            _chip("v6e", 32, 918, 1638),
        )
    }
)


def find_chip(topology: str) -> Chip:
    """The chip of a topology such as "v5e:2x4". ValueError for one that is not in the table."""
    found = TOPOLOGY.fullmatch(topology)
    if found is None or found["chip"] not in CHIPS:
        raise ValueError(
            f"unknown TPU topology {topology!r}; write CHIP:SHAPE, such as v5e:2x4, with one of {', '.join(CHIPS)}"
        )
    return CHIPS[found["chip"]]


def num_chips(topology: str) -> int:
    """Chips of a topology: 8 of "v5e:2x4"."""
    find_chip(topology)
    return prod(int(side) for side in topology.partition(":")[2].split("x"))
