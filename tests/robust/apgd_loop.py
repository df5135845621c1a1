"""APGD image by image and number by number, in float64: written from the paper and the published code's behaviour, with
Python branches and lists where robust/apgd.py has masks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # logits [K] -> number


@dataclass
class Trace:
    """What one image went through."""

    losses: list[float] = field(default_factory=list)  # at the start and after each iteration
    sizes: list[float] = field(default_factory=list)  # step size of each move
    images: list[Tensor] = field(default_factory=list)
    wrong_at: int | None = None  # the first look that found it misclassified


def gradient(model: Callable[[Tensor], Tensor], image: Tensor, loss: Loss) -> tuple[Tensor, Tensor, float]:
    leaf = image.clone().requires_grad_(True)
    logits = model(leaf[None])[0]
    value = loss(logits)
    (found,) = torch.autograd.grad(value, leaf)
    return found, logits.detach(), float(value.detach())


def into_ball(image: Tensor, clean: Tensor, eps: float, norm: str) -> Tensor:
    if norm == "linf":
        return torch.min(torch.max(image, clean - eps), clean + eps).clamp(0, 1)
    change = image - clean
    length = float(change.norm())
    return (clean + change / (length + 1e-12) * min(eps, length)).clamp(0, 1)


def uphill(image: Tensor, slope: Tensor, size: float, norm: str) -> Tensor:
    return image + size * (slope.sign() if norm == "linf" else slope / (slope.norm() + 1e-12))


def apgd(
    model: Callable[[Tensor], Tensor],
    clean: Tensor,
    label: int,
    start: Tensor,
    loss: Loss,
    *,
    eps: float,
    norm: str,
    iterations: int = 100,
) -> Trace:
    """One image, without an early end."""
    trace = Trace()
    window = max(int(0.22 * iterations), 1)
    image, before = start, start
    slope, logits, value = gradient(model, image, loss)
    best, best_slope, best_value = image, slope, value
    size, made, was_halved, best_at_look = 2 * eps, 0, True, value
    history = [0.0] * iterations  # the published code's array, zeros where nothing was written yet
    note(trace, logits, label, value, image)
    for i in range(iterations):
        momentum, before = image - before, image
        moved = into_ball(uphill(image, slope, size, norm), clean, eps, norm)
        trace.sizes.append(size)
        a = 0.75 if i > 0 else 1.0
        image = into_ball(image + (moved - image) * a + momentum * (1 - a), clean, eps, norm) if i else moved
        slope, logits, value = gradient(model, image, loss)
        note(trace, logits, label, value, image)
        history[i] = value
        if value > best_value:
            best, best_slope, best_value = image, slope, value
        made += 1
        if made == window:
            rises = sum(history[i - j] > history[i - j - 1] for j in range(window))
            stuck = not was_halved and best_at_look >= best_value
            was_halved = rises <= 0.75 * window or stuck
            best_at_look = best_value
            if was_halved:
                size, image, slope = size / 2, best, best_slope
            window = max(window - max(int(0.03 * iterations), 1), max(int(0.06 * iterations), 1))
            made = 0
    return trace


def note(trace: Trace, logits: Tensor, label: int, value: float, image: Tensor) -> None:
    trace.losses.append(value)
    trace.images.append(image)
    if int(logits.argmax()) != label and trace.wrong_at is None:
        trace.wrong_at = len(trace.losses) - 1
