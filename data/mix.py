"""Mixup and cutmix on the device: one static-shape function for every backend, driven by the batch's draws.

Partners are neighbours, (0,1), (2,3), ...: "batch reversed" would pair other samples on every layout.
Everything is torch.where against an iota: no slice by value, no boolean index, no host read, so XLA compiles
it once.
"""

import torch
from torch import Tensor

from data.batch import BOX_X0, BOX_X1, BOX_Y0, BOX_Y1, CUTMIX, LAM

# N samples of this process (even), C channels, H W pixels, K classes


def mix(
    image: Tensor, label: Tensor, draw: Tensor, *, num_classes: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Mix each sample with its neighbour.

    image float32 (N,C,H,W) in [0,1], label int64 (N), draw float32 (N,8) -> image of the same shape and soft
    target float32 (N,K) whose rows sum to 1. Cutmix keeps the image outside the box and shows its partner
    inside; lam weighs label i and 1-lam its partner's. Smoothing as in timm: off eps/K, on 1-eps+eps/K.
    """
    mixed = _mix_pixels(image, draw)
    target = smooth_one_hot(label, num_classes=num_classes, smoothing=smoothing)
    lam_N1 = draw[:, LAM, None]
    return mixed, lam_N1 * target + (1 - lam_N1) * _partner(target)


def smooth_one_hot(label: Tensor, *, num_classes: int, smoothing: float) -> Tensor:
    """int64 (N) -> float32 (N,K). A label outside 0..K-1, such as padding's -1, gets no "on" entry."""
    is_label = label[:, None] == torch.arange(num_classes, device=label.device)
    off = smoothing / num_classes
    return is_label.to(torch.float32) * (1 - smoothing) + off


def _mix_pixels(image: Tensor, draw: Tensor) -> Tensor:
    partner = _partner(image)
    lam = draw[:, LAM, None, None, None].to(image.dtype)
    blended = lam * image + (1 - lam) * partner
    pasted = torch.where(_inside_box(draw, height=image.shape[2], width=image.shape[3]), partner, image)
    return torch.where(draw[:, CUTMIX, None, None, None] > 0, pasted, blended)


def _inside_box(draw: Tensor, *, height: int, width: int) -> Tensor:
    """bool (N,1,H,W), True inside [y0,y1) x [x0,x1)."""
    y = torch.arange(height, device=draw.device, dtype=draw.dtype)
    x = torch.arange(width, device=draw.device, dtype=draw.dtype)
    rows_NH = (y >= draw[:, BOX_Y0, None]) & (y < draw[:, BOX_Y1, None])
    columns_NW = (x >= draw[:, BOX_X0, None]) & (x < draw[:, BOX_X1, None])
    return (rows_NH[:, :, None] & columns_NW[:, None, :])[:, None]


def _partner(tensor: Tensor) -> Tensor:
    """Swap neighbours along the first axis. A reshape and a flip keep pairs within one device's shard under
    SPMD, where an index with i^1 would gather across devices.
    """
    assert tensor.shape[0] % 2 == 0, f"mixing needs an even batch, got {tensor.shape[0]}"
    return tensor.reshape(tensor.shape[0] // 2, 2, *tensor.shape[1:]).flip(1).reshape(tensor.shape)
