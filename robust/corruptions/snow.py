"""snow: thresholded, enlarged and streaked noise, twice, once upside down, over a whitened image."""

import math

import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import normal, stream
from robust.corruptions.motion import streak
from robust.corruptions.separable import enlarging_taps, resample

# N images; levels (N,3,H,W) are 0..255 in float32.


def snow(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Only the middle of the noise is enlarged, so only that much of it is drawn."""
    mean, deviation, zoom, threshold, radius, sigma, share = tables.SNOW[severity - 1]
    num, _, height, width = levels.shape
    kept = [math.ceil(length / zoom) for length in (height, width)]
    flakes = mean + deviation * normal(seed, kept[0] * kept[1]).reshape(num, *kept)
    down, across = (
        enlarging_taps(few, zoom, length) for few, length in zip(kept, (height, width), strict=True)
    )
    layer = resample(flakes, down=down, across=across)[:, None]
    layer = torch.where(layer < threshold, 0.0, layer.clamp(0.0, 1.0))
    layer = (layer * 255).floor()  # a PNG carries it to ImageMagick in the original, and back
    angle = stream(seed, "snow", severity, 1)
    layer = (streak(layer, angle, radius=radius, sigma=sigma, first_degree=-135) + 0.5).floor()
    whitened = torch.maximum(levels, 1.5 * _grey(levels) + 127.5)
    return levels.lerp(whitened, 1 - share) + layer + layer.flip(-1, -2)


def _grey(levels: Tensor) -> Tensor:
    red, green, blue = torch.split(levels, 1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
