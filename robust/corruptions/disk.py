"""defocus_blur's filter: the mean over a disk, whose edge is softened, without its (2r + 1)**2 products.

A row of a disk is a box, and the box of a wider row is that of a narrower one and two more pixels; so a few dozen
additions do. The original softens the disk's array with OpenCV's Gaussian filter, which mirrors the array at its ends.
From radius 8 on the disk reaches them, and the weights' sum becomes up to 1.4 % larger (images become that much
brighter). That is kept.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robust.corruptions.separable import pad

# N images, H rows, W columns; places of the filter are from -end to end.
_FIRST_CUT = (
    8  # radius of the disk that fills the original's array of 17x17; larger ones have an array that fits
)
_NOTHING = 1e-7  # weights below are left out


class Disk:
    """`radius` in pixels, `sigma` of the softening."""

    def __init__(self, radius: int, sigma: float) -> None:
        self.radius = radius
        self.halves = [math.isqrt(radius**2 - dy**2) for dy in range(radius + 1)]  # half width of the row dy
        self.area = sum((2 * half + 1) * (1 if dy == 0 else 2) for dy, half in enumerate(self.halves))
        self.softening = _softening(radius, sigma)
        self.reach = len(self.softening) - 1
        self.end = radius if radius >= _FIRST_CUT else radius + 2 * self.reach
        self.ends = self._at_the_ends()
        self.steps = {half: self._steps(half) for half in set(self.halves)}

    def blur(self, levels: Tensor) -> Tensor:
        """(N,3,H,W), mirrored at its edges without the outermost pixel."""
        height = levels.shape[-2]
        wide = pad(levels, self.end + self.reach, axis=-2, border="mirror")
        boxes = self._boxes(wide)
        plain = _Sum()
        for dy in range(-self.radius, self.radius + 1):
            box = boxes[self.halves[abs(dy)]]
            plain.add(box.narrow(-2, self.end + dy, height + 2 * self.reach), 1 / self.area)
        soft = _Sum()
        for step in range(-self.reach, self.reach + 1):
            soft.add(plain.total.narrow(-2, self.reach + step, height), self.softening[abs(step)])
        for place, source, weight in self.ends:
            box = boxes[self.halves[abs(source)]]
            soft.add(box.narrow(-2, self.end + self.reach + place, height), weight / self.area)
        return soft.total

    def _boxes(self, wide: Tensor) -> dict[int, Tensor]:
        """For each half width of a row, the sums over such boxes, softened across."""
        width = wide.shape[-1]
        padded = pad(wide, self.end, axis=-1, border="mirror")
        sums = [wide]
        for half in range(1, self.end + 1):
            left, right = (padded.narrow(-1, self.end + side * half, width) for side in (-1, 1))
            sums.append(sums[-1] + left + right)
        boxes = {}
        for half, steps in self.steps.items():
            box = _Sum()
            for number, step in enumerate(steps):
                box.add(sums[number], step)
            boxes[half] = box.total
        return boxes

    def _steps(self, half: int) -> list[float]:
        """A softened box of that half width as a sum of plain ones: the share of each half width."""
        row = np.abs(np.arange(-self.end, self.end + 1)) <= half
        profile = (self._mirrored_softening() @ row)[self.end :]
        return [float(step) for step in profile - np.append(profile[1:], 0.0)]

    def _mirrored_softening(self) -> NDArray[np.float64]:
        """[place,source] as the filter's array, which ends at the radius, is softened in one direction."""
        size = 2 * self.end + 1
        matrix = np.zeros((size, size))
        for place in range(size):
            for step in range(-self.reach, self.reach + 1):
                source = abs(place + step)
                source = min(source, 2 * (size - 1) - source)
                matrix[place, source] += self.softening[abs(step)]
        return matrix

    def _at_the_ends(self) -> list[tuple[int, int, float]]:
        """(place, source, weight): what the mirrored softening of rows has beyond the plain one."""
        end, reach = self.end, self.reach
        size = 2 * (end + reach) + 1
        excess = np.zeros((size, 2 * end + 1))
        excess[reach : size - reach] = self._mirrored_softening()
        for source in range(2 * end + 1):
            for step in range(-reach, reach + 1):
                excess[source + reach + step, source] -= self.softening[abs(step)]
        return [
            (int(place) - end - reach, int(source) - end, float(excess[place, source]))
            for place, source in np.argwhere(np.abs(excess) > _NOTHING)
            if abs(source - end) <= self.radius
        ]


@lru_cache(maxsize=16)
def disk(radius: int, sigma: float) -> Disk:
    """The filter, made once."""
    return Disk(radius, sigma)


class _Sum:
    """A weighted sum of tensors."""

    total: Tensor

    def __init__(self) -> None:
        self.is_empty = True

    def add(self, value: Tensor, weight: float) -> None:
        if abs(weight) < _NOTHING:
            return
        self.total = value * weight if self.is_empty else self.total.add(value, alpha=weight)
        self.is_empty = False


def _softening(radius: int, sigma: float) -> list[float]:
    """OpenCV's Gaussian kernel of 3 or 5 places, from the middle on; without what is nothing."""
    reach = 1 if radius <= 8 else 2
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight /= weight.sum()
    return [float(value) for value in weight[reach:] if value > _NOTHING]
