"""Which classes to aim at first: those whose boundary is nearest where the model is taken to be linear.

The order by logits asks who is second; a class further down may be nearer, when the logits' difference is steep in the
image (Melamed et al. 2024, arXiv:2407.02240: MALT, which takes 9 of the 100 likeliest by this score).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robust.gradient import Predict, logits_and_gradients
from robust.lanes import Norm
from robust.stage import Device

AT_ONCE = 9  # gradients that a graph holds
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}  # order of the norm of a gradient


def nearest_first(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    candidates: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    norm: Norm,
    batch: int,
    device: Device,
) -> list[list[int]]:
    """The `candidates` of each of `rows` (of image (M,3,H,W), label [M]; all have equally many), nearest first.

    Near is (z_y - z_i) / |d(z_y - z_i)/dx| in the dual norm: how far the linear model's boundary is. An unclear one (no
    gradient, NaN) comes last; of equally near ones the likelier comes first. For each 9 classes a forward pass and 9
    backward ones, in batches of one shape.
    """
    found: list[list[int]] = []
    for start in range(0, len(rows), batch):
        part = list(range(start, min(start + batch, len(rows))))
        filled = part + [part[-1]] * (batch - len(part))
        place = device.feed(torch.tensor([rows[number] for number in filled]))
        rivals = torch.tensor([list(candidates[number]) for number in filled])
        distance = _distances(
            predict,
            image.index_select(0, place),
            label.index_select(0, place),
            rivals,
            norm=norm,
            device=device,
        )
        order = torch.argsort(distance, dim=1, stable=True)
        found += rivals.gather(1, order)[: len(part)].tolist()
    return found


def _distances(
    predict: Predict, image: Tensor, label: Tensor, rivals: Tensor, *, norm: Norm, device: Device
) -> Tensor:
    """float32 [B,c] on the host, of the boundaries with `rivals` int64 [B,c] (on the host too)."""
    found = []
    for start in range(0, rivals.shape[1], AT_ONCE):
        some = rivals[:, start : start + AT_ONCE]
        # The last few are filled up: one graph for all.
        filled = torch.cat((some, some[:, -1:].expand(-1, AT_ONCE - some.shape[1])), dim=1)
        found.append(
            _some_distances(predict, image, label, device.feed(filled), norm)[:, : some.shape[1]].cpu()
        )
        device.cut()
    distance = torch.cat(found, dim=1)
    return torch.where(distance.isnan(), torch.inf, distance)


def _some_distances(predict: Predict, image: Tensor, label: Tensor, rivals: Tensor, norm: Norm) -> Tensor:
    logits, gradient_of = logits_and_gradients(predict, image)
    distances = []
    for number in range(rivals.shape[1]):
        pair = torch.stack((label, rivals[:, number]), dim=1)

        def gap_of(logits: Tensor, pair: Tensor = pair) -> Tensor:
            picked = logits.gather(1, pair)
            return picked[:, 0] - picked[:, 1]

        gradient = gradient_of(lambda logits, gap_of=gap_of: gap_of(logits).sum())  # type: ignore[misc]
        steepness = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
        distances.append(gap_of(logits).to(torch.float32) / steepness)
    return torch.stack(distances, dim=1)
