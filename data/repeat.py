"""Repeated augmentation (Hoffer et al. 2020, 1901.09335; DeiT's sampler): an image comes several times, each time
cropped anew, close together so that it is read and decoded once.

A `Cursor` counts positions whatever the number of copies, and an epoch has as many positions as the data set has
samples: with k copies it shows the first 1/k of its order, k times each, as DeiT does. Positions go in blocks of
2k for two samples in turn, a b a b a b: neighbours, which are mixed with each other, are different images. Every
copy has the random stream of its own position. Nothing of this depends on ranks or workers; a batch per process
that is a multiple of 2k has all copies of its images, any other decodes a few of them twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from data.decode import Picture
from data.window import SampleOrder, Window


class RepeatedOrder:
    """A `SampleOrder` whose samples come `repeats` times."""

    def __init__(self, order: SampleOrder, *, repeats: int, num_samples: int) -> None:
        """`num_samples`: of the data set, and so positions of an epoch."""
        if repeats < 1:
            raise ValueError(f"repeats {repeats} must be at least 1; 1 shows each image once an epoch")
        self.order, self.repeats, self.num_samples = order, repeats, num_samples

    def keys(self, positions: NDArray[np.int64], *, epoch: int) -> NDArray[np.int64]:
        block = positions // (2 * self.repeats)
        return self.order.keys(2 * block + positions % 2, epoch=epoch)

    def windows(self, epoch: int) -> list[Window]:
        """Those that the epoch comes to. Where two meet within a block, they share its positions."""
        size, windows = 2 * self.repeats, []
        for first, last, shards in self.order.windows(epoch):
            begin, end = first // 2 * size, (last + 1) // 2 * size
            if begin < self.num_samples:
                windows.append(Window(begin, min(end, self.num_samples), shards))
        return windows


class SharedPictures:
    """Opens pictures. One whose key comes again is decoded whole, and kept until its last time."""

    def __init__(self, keys: Iterable[int], read: Callable[[int], bytes], *, apply_exif: bool) -> None:
        """`keys`: all that will be taken, in any order; `read`: the encoded image of a key."""
        self._left, self._read, self._apply_exif = Counter(keys), read, apply_exif
        self._kept: dict[int, Picture] = {}

    def take(self, key: int) -> Picture:
        """ValueError where the image cannot be decoded, and whatever `read` raises."""
        picture = self._kept.pop(key, None) or Picture(self._read(key), apply_exif=self._apply_exif)
        self._left[key] -= 1
        if self._left[key] > 0:
            picture.pixels()
            self._kept[key] = picture
        return picture
