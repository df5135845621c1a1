"""`robust.corrupt`: one kind at one severity for a batch of images, each with the random numbers of its own seed."""

import torch
from torch import Tensor

from robust.corruptions.catalogue import find
from robust.corruptions.draws import stream
from robust.corruptions.names import check_kind, check_severity
from robust.precision import exact_float32

# What rounding may take from a value that should be whole, before the fraction is cut off.
_SLACK = 2.0**-8


@torch.no_grad()
def corrupt(image: Tensor, kind: str, severity: int, *, seed: Tensor, frost: Tensor | None = None) -> Tensor:
    """image (N,3,H,W) float in [0, 1] and seed int64 [N] -> float32 of the same shape, in whole 255ths.

    `kind` is one of `robust.list_corruptions()`, `severity` 1 to 5. As in the original sets, whose code works on
    8-bit images, the image is rounded to 255ths before and its fractions are cut off behind; the sets' files are also
    compressed (JPEG, quality 85), which is not done here. An image's result follows from it and its own seed: no
    other image, order, batch size or device changes it, but for rounding at the last level.

    `frost` (K,3,h,w) in [0, 1] are photographs to take the place of the generated frost, h and w at least H and W.

    Shapes are fixed and nothing is read back, so XLA compiles once per kind and severity. On the cpu two things differ:
    jpeg_compression is real JPEG if Pillow is there (see `robust.corruptions.jpeg.codec`), and values outside [0, 1]
    are refused (elsewhere that would wait for the device, and they are clamped).
    """
    check_kind(kind)
    check_severity(severity)
    _check(image, seed)
    apply = find(kind)
    options = {} if frost is None else {"overlays": _checked_frost(kind, frost, image)}
    if image.shape[0] == 0:
        return image.to(torch.float32)
    # One image at a time stays in a core's cache: three times as fast as a batch of 32. Devices take all at once.
    size = 1 if image.device.type == "cpu" else image.shape[0]
    seed = stream(seed.to(image.device), kind, severity)
    with exact_float32():
        parts = [
            _finished(apply(_levels(part), own, severity, **options))
            for part, own in zip(torch.split(image, size), torch.split(seed, size), strict=True)
        ]
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _levels(image: Tensor) -> Tensor:
    return (image.to(torch.float32).clamp(0.0, 1.0) * 255 + 0.5).floor()


def _finished(levels: Tensor) -> Tensor:
    return (levels + _SLACK).clamp(0.0, 255.0).floor() / 255


def _check(image: Tensor, seed: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
        shape = tuple(image.shape)
        raise ValueError(
            f"image {shape} of {image.dtype} must be (N,3,H,W) floats in [0, 1]; divide 8-bit levels by 255"
        )
    if seed.ndim != 1 or seed.shape[0] != image.shape[0] or seed.dtype != torch.int64:
        raise ValueError(
            f"seed {tuple(seed.shape)} of {seed.dtype} must be int64 with one number per image; "
            f"there are {image.shape[0]}"
        )
    if min(image.shape[2:]) < 32:
        height, width = image.shape[2:]
        raise ValueError(f"images of {height}x{width} px: corruptions need 32x32 at least; enlarge them")
    if image.device.type == "cpu" and image.numel() and not _is_inside(image):
        low, high = float(image.amin()), float(image.amax())
        raise ValueError(
            f"image has values from {low:g} to {high:g}, outside [0, 1]; divide 8-bit levels by 255"
        )


def _is_inside(image: Tensor) -> bool:
    low, high = torch.aminmax(image)  # NaN if any value is, which is not inside either
    return bool((low >= 0) & (high <= 1))


def _checked_frost(kind: str, frost: Tensor, image: Tensor) -> Tensor:
    if kind != "frost":
        raise ValueError(f"frost photographs are for the kind frost; drop them for {kind}")
    if frost.ndim != 4 or frost.shape[1] != 3 or not frost.is_floating_point():
        raise ValueError(f"frost {tuple(frost.shape)} of {frost.dtype} must be (K,3,h,w) floats in [0, 1]")
    if frost.shape[2] < image.shape[2] or frost.shape[3] < image.shape[3]:
        raise ValueError(
            f"frost of {frost.shape[2]}x{frost.shape[3]} px is smaller than the images, "
            f"{image.shape[2]}x{image.shape[3]}; give larger photographs"
        )
    return frost
