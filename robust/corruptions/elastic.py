"""elastic_transform: a random affine map, then random displacements (the original's, not that of `imagecorruptions`,
which leaves the affine map out and is far easier)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from robust.corruptions import tables
from robust.corruptions.draws import NUM_HALVES, halves, stream, uniform
from robust.corruptions.pixels import bilinear, pack
from robust.corruptions.separable import gaussian_half, symmetric

# N images, H rows, W columns, P = H * W; levels (N,3,H,W) are 0..255 in float32.
_MOST_SHIFTED = 16
_SIDE = 244 / 224  # of the image: the original's lengths are shares of 244 px


def elastic_transform(levels: Tensor, seed: Tensor, severity: int) -> Tensor:
    """Both maps bilinear, with levels rounded to quarters between them; beyond its edges the image is mirrored."""
    strength, sigma, reach = (share * _SIDE for share in tables.ELASTIC_TRANSFORM[severity - 1])
    height, width = levels.shape[-2:]
    side = min(height, width)
    y = torch.arange(height, device=levels.device, dtype=torch.float32).repeat_interleave(width)
    x = torch.arange(width, device=levels.device, dtype=torch.float32).repeat(height)
    corners = stream(seed, "elastic_transform", severity, 1)
    size = {"height": height, "width": width}
    to_y, to_x = _affine(uniform(corners, 6, -reach * side, reach * side), y, x, **size)
    moved = bilinear(pack(levels), to_y, to_x, **size, border="mirror")
    down, right = _displacements(seed, sigma=sigma * side, **size) * (strength * side)
    packed = pack(moved.reshape(levels.shape))
    return bilinear(packed, y + down, x + right, **size, border="reflect").reshape(levels.shape)


def _affine(shift: Tensor, y: Tensor, x: Tensor, *, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the pixels y and x [P] come from when three corners of a square in the middle move by `shift` (N,6):
    y and x (N,P)."""
    middle, half = (height // 2, width // 2), min(height, width) // 3
    # Corners relative to the third; (1, 1), (-1, 1) and (-1, -1) times half from the middle, as (y, x).
    start = torch.tensor([[2.0 * half, 2.0 * half], [0.0, 2.0 * half]], device=shift.device)
    move = shift.reshape(-1, 3, 2)
    first, second = (start[corner] + move[:, corner] - move[:, 2] for corner in (0, 1))
    origin = torch.tensor([middle[0] - half, middle[1] - half], device=shift.device) + move[:, 2]
    # A point is origin + a * first + b * second; it comes from the same a and b of the unmoved square.
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    dy, dx = y - origin[:, 0, None], x - origin[:, 1, None]
    a = (dy * second[:, 1, None] - dx * second[:, 0, None]) / area[:, None]
    b = (dx * first[:, 0, None] - dy * first[:, 1, None]) / area[:, None]
    return middle[0] - half + 2 * half * a, middle[1] - half + 2 * half * (a + b)


def _displacements(seed: Tensor, *, sigma: float, height: int, width: int) -> Tensor:
    """Down and right, (2,N,P): blurred uniform noise from -1 to 1.

    Sigma is up to three quarters of the side; two matrices do it when there would be too many shifted rows to add. What
    a lower precision of their product would do is far below a tenth of a pixel.
    """
    draw = halves(seed, 2 * height * width).reshape(-1, 2, height, width)
    field = draw.to(torch.float32) * (2 / NUM_HALVES) + (1 / NUM_HALVES - 1)
    half = gaussian_half(sigma, truncate=3.0)
    if len(half) <= _MOST_SHIFTED:
        blurred = symmetric(field, half, border="reflect")
    else:
        down, across = (_blurring(length, sigma).to(seed.device) for length in (height, width))
        blurred = down @ field @ across.T
    return blurred.flatten(2).transpose(0, 1)


@lru_cache(maxsize=16)
def _blurring(length: int, sigma: float) -> Tensor:
    """float32 [length,length]: a Gaussian filter cut off at three sigma, the image mirrored as often as it takes."""
    half = np.array(gaussian_half(sigma, truncate=3.0))
    weight = np.concatenate([half[:0:-1], half])
    place = (np.arange(length)[:, None] + np.arange(1 - len(half), len(half))) % (2 * length)
    place = np.where(place < length, place, 2 * length - 1 - place)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], place), weight)
    return torch.from_numpy(matrix.astype(np.float32))
