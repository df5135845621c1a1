"""pixelate: Pillow's box filter down and up again, rounded to levels behind each of its passes."""

from functools import lru_cache

import numpy as np
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.separable import Taps, rows, taps_of

# N images; levels (N,3,H,W) are 0..255 in float32.


def pixelate(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """As in Pillow a box weighs the pixels whose centres it holds equally, and columns are treated first."""
    share = tables.PIXELATE[severity - 1]
    height, width = levels.shape[-2:]
    few = [max(int(length * share), 1) for length in (height, width)]
    flat = levels.flatten(0, 1).transpose(1, 2).contiguous()
    turned = _rounded(rows(flat, box_taps(width, few[1])))
    small = _rounded(rows(turned.transpose(1, 2).contiguous(), box_taps(height, few[0])))
    large = rows(small.transpose(1, 2).contiguous(), box_taps(few[1], width)).transpose(1, 2)
    return rows(large.contiguous(), box_taps(few[0], height)).reshape(levels.shape)


def _rounded(image: Tensor) -> Tensor:
    return (image + (0.5 + 2**-10)).floor()  # thirds and sevenths of whole numbers may fall short of a half


@lru_cache(maxsize=64)
def box_taps(length: int, wanted: int) -> Taps:
    """Pillow's BOX from `length` to `wanted` rows."""
    scale = length / wanted
    reach = 0.5 * max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    steps = np.arange(int((last - first).max()))[:, None]
    offset = (first + steps - centre + 0.5) / max(scale, 1.0)
    weight = np.where((steps < last - first) & (offset > -0.5) & (offset <= 0.5), 1.0, 0.0)
    weight = weight / weight.sum(axis=0)
    used = weight.any(axis=1)
    return taps_of(np.minimum(first + steps, length - 1)[used], weight[used])
