"""Host checks of the public attack functions: everything outside the contract is one ValueError line.

All of these read the host (they wait for the device), so they stand at the door of functions that a person
calls, never inside init, step or finish. Each names the value, the rule and the remedy.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def check_image(image: Tensor, label: Tensor) -> None:
    """Image float (N,3,H,W) in [0, 1] and label int64 [N], or ValueError."""
    if image.dim() != 4 or not image.is_floating_point():
        raise ValueError(
            f"image is {image.dtype} {tuple(image.shape)}; an attack needs float N x 3 x H x W in [0, 1]"
        )
    if image.numel() == 0:
        raise ValueError(f"image is empty {tuple(image.shape)}: the selection holds nothing to attack")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise ValueError(
            f"image values span {low:g} to {high:g}, outside [0, 1]; undo the normalisation or divide by 255"
        )
    if label.dtype != torch.int64 or label.shape != image.shape[:1]:
        raise ValueError(
            f"label is {label.dtype} {tuple(label.shape)}; give int64 [{image.shape[0]}], one class per image"
        )


def check_norm(norm: str, known: Iterable[str]) -> None:
    """ValueError unless `norm` is one of `known`."""
    if norm not in known:
        raise ValueError(f"norm {norm!r} is not defined here; use {' or '.join(known)}")


def checked_eps(eps: float | Tensor, image: Tensor, widest: float) -> Tensor:
    """The radius as a tensor, 0-dim or [N], in (0, widest], of the image's dtype and device."""
    radius = torch.as_tensor(eps, dtype=image.dtype, device=image.device)
    if radius.dim() > 1 or (radius.dim() == 1 and radius.shape[0] != image.shape[0]):
        raise ValueError(
            f"eps has shape {tuple(radius.shape)}; give one number, or one per image [{image.shape[0]}]"
        )
    worst = float(radius.max())
    if not (float(radius.min()) > 0.0 and worst <= widest):
        hint = f"; did you mean {worst:g}/255?" if widest < worst <= 255.0 * widest else ""
        raise ValueError(f"eps {worst:g} is outside (0, {widest:g}]: pixels are in [0, 1]{hint}")
    return radius


def checked_step(step: float | Tensor, widest: float) -> float | Tensor:
    """The length of a step, in (0, 2 * widest] pixel units."""
    smallest, longest = float(torch.as_tensor(step).min()), 2.0 * widest
    if not 0.0 < smallest <= longest:
        hint = f"; did you mean {smallest:g}/255?" if smallest > longest else "; try eps/4"
        raise ValueError(f"step {smallest:g} is outside (0, {longest:g}]: pixels are in [0, 1]{hint}")
    return step


def checked_seed(seed: int | Tensor, image: Tensor) -> Tensor:
    """One int64 seed per image, from such a tensor or from one int and the position."""
    if isinstance(seed, int):
        # position plus a large odd stride: distinct for every (seed, position) a batch can hold; wraps at 2**64
        offset = (seed * 1_000_003 + 2**63) % 2**64 - 2**63
        return torch.arange(image.shape[0], dtype=torch.int64, device=image.device) + offset
    if seed.dtype != torch.int64 or seed.shape != image.shape[:1]:
        raise ValueError(f"seed is {seed.dtype} {tuple(seed.shape)}; give an int or int64 [{image.shape[0]}]")
    return seed


def checked_logits(logits: object, image: Tensor, label: Tensor) -> Tensor:
    """What predict returned on the clean images: finite logits (N,K) that have a column for every label."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"predict returned {type(logits).__name__}, not a tensor; wrap it to return the logits N x K"
        )
    if logits.dim() != 2 or logits.shape[0] != image.shape[0]:
        raise ValueError(
            f"predict returned {tuple(logits.shape)} for {image.shape[0]} images; it must return logits N x K"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "predict returned NaN or infinite logits on the clean images; verdicts on them mean nothing"
        )
    check_labels(label, logits.shape[1])
    return logits


def check_labels(label: Tensor, num_classes: int) -> None:
    """ValueError unless all of `label` are classes of the model."""
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels span {low} to {high}; the model has classes 0 to {num_classes - 1}")
