"""FAB-T image by image in float64, with an exact projection by bisection, and all its iterations."""

from collections.abc import Callable

import torch
from l1_loop import greedy_way
from torch import Tensor


def projection(point: Tensor, normal: Tensor, offset: float, norm: str) -> Tensor:
    """The move from a flat `point` to the plane, by bisection on its parameter; in l1 greedily."""
    if norm == "l1":
        return greedy_way(point, normal, offset)
    gap = offset - float(normal @ point)
    sign = normal.sign() * (1.0 if gap > 0 else -1.0)
    reach = torch.where(sign > 0, 1 - point, point)
    pace = torch.ones_like(point) if norm == "linf" else normal.abs()
    low, high = 0.0, 1.0 / max(float(pace[pace > 0].min()), 1e-9)
    for _ in range(200):
        t = (low + high) / 2
        value = float((normal.abs() * torch.minimum(t * pace, reach)).sum())
        low, high = (t, high) if value < abs(gap) else (low, t)
    return sign * torch.minimum(high * pace, reach)


def length(change: Tensor, norm: str) -> float:
    if norm == "l1":
        return float(change.abs().sum())
    return float(change.abs().max() if norm == "linf" else change.norm())


def fab(
    model: Callable[[Tensor], Tensor], clean: Tensor, label: int, target: int, *, norm: str, iterations: int
) -> tuple[list[Tensor], float]:
    """The iterates, and the length of the shortest misclassified one that was met."""
    image, best, iterates = clean.clone(), float("inf"), []
    for _ in range(iterations):
        leaf = image.clone().requires_grad_(True)
        logits = model(leaf[None])[0]
        gap = logits[target] - logits[label]
        (normal,) = torch.autograd.grad(gap, leaf)
        w, offset = normal.flatten(), float(normal.flatten() @ image.flatten()) - float(gap.detach())
        ours = projection(image.flatten(), w, offset, norm)
        theirs = projection(clean.flatten(), w, offset, norm)
        a, b = max(length(ours, norm), 1e-8), max(length(theirs, norm), 1e-8)
        share = min(max(a / (a + b), 0.0), 0.1)
        moved = (image.flatten() + 1.05 * ours) * (1 - share) + (clean.flatten() + 1.05 * theirs) * share
        image = moved.clamp(0, 1).view_as(clean)
        if int(model(image[None])[0].argmax()) != label:
            best = min(best, length((image - clean).flatten(), norm))
            image = clean + (image - clean) * 0.9
        iterates.append(image)
    return iterates, best


def fab_untargeted(
    model: Callable[[Tensor], Tensor], clean: Tensor, label: int, *, norm: str, iterations: int
) -> tuple[list[Tensor], list[int]]:
    """The iterates, and which class was the nearest in each iteration."""
    image, iterates, rivals = clean.clone(), [], []
    for _ in range(iterations):
        leaf = image.clone().requires_grad_(True)
        logits = model(leaf[None])[0]
        planes = []
        for rival in range(len(logits)):
            if rival == label:
                continue
            gap = logits[rival] - logits[label]
            (normal,) = torch.autograd.grad(gap, leaf, retain_graph=True)
            w = normal.flatten()
            dual = float({"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm])
            value = float(gap.detach())
            planes.append((abs(value) / dual, rival, w, float(w @ image.flatten()) - value))
        _, rival, w, offset = min(planes, key=lambda plane: plane[0])
        rivals.append(rival)
        ours = projection(image.flatten(), w, offset, norm)
        theirs = projection(clean.flatten(), w, offset, norm)
        a, b = max(length(ours, norm), 1e-8), max(length(theirs, norm), 1e-8)
        share = min(a / (a + b), 0.1)
        moved = (image.flatten() + 1.05 * ours) * (1 - share) + (clean.flatten() + 1.05 * theirs) * share
        image = moved.clamp(0, 1).view_as(clean)
        if int(model(image[None])[0].argmax()) != label:
            image = clean + (image - clean) * 0.9
        iterates.append(image)
    return iterates, rivals
