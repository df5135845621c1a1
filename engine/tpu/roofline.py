"""How fast a step could be at best and might be at worst: a range from counts and data sheets. Nothing ran.

Never a throughput: it knows neither waiting for data nor how well the compiler's program keeps the units busy, and it
was not held against a real TPU.
"""

from typing import NamedTuple

from engine.tpu.chips import Chip

FLOAT32_PASSES = 6  # bf16 products that one float32 product of highest precision is made of


class Roofline(NamedTuple):
    """Seconds of a step on one device; estimates."""

    compute_s: float  # all operations at the chip's peak
    compute_slow_s: float  # float32 products as several of bf16; else the same
    least_bytes_s: float  # bytes that pass through HBM, as the program's text has them
    most_bytes_s: float  # all operands and results that the compiler counts, those in on-chip memory too

    @property
    def low_s(self) -> float:
        """Computing and moving bytes at the same time."""
        return max(self.compute_s, self.least_bytes_s)

    @property
    def high_s(self) -> float:
        """One after the other."""
        return self.compute_slow_s + self.most_bytes_s

    @property
    def bound(self) -> str:
        """What takes longer."""
        if self.least_bytes_s > self.compute_slow_s:
            return "memory"
        return "compute" if self.compute_s > self.most_bytes_s else "memory or compute"


def roofline(chip: Chip, *, flops: float, byte_counts: tuple[float, ...], precision: str) -> Roofline:
    """`byte_counts`: one or several counts of the bytes moved."""
    compute_s = flops / (chip.tflops * 1e12)
    return Roofline(
        compute_s=compute_s,
        compute_slow_s=compute_s * (FLOAT32_PASSES if precision == "float32" else 1),
        least_bytes_s=min(byte_counts) / (chip.gb_per_s * 1e9),
        most_bytes_s=max(byte_counts) / (chip.gb_per_s * 1e9),
    )
