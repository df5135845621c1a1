"""Targets by distance: on a linear model the nearest boundary, by the closed form."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from robust.stage import Device
from robust.targets import nearest_first

NUM, CLASSES = 7, 12
HERE = Device(feed=lambda tensor: tensor)


def problem() -> tuple[nn.Module, Tensor, Tensor, list[list[int]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval().requires_grad_(False)
    model[1].weight.data *= torch.rand(CLASSES, 1) * 3.0  # steep classes and flat ones
    image = torch.rand(NUM, 3, 4, 4)
    order = model(image).argsort(dim=1, descending=True)
    return model, image, order[:, 0], order[:, 1:].tolist()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("batch", [3, 8])
def test_the_order_is_that_of_the_distances(norm: Literal["linf", "l2"], batch: int) -> None:
    model, image, label, candidates = problem()
    rows = [4, 0, 6, 2]
    found = nearest_first(
        model,
        image,
        label,
        [candidates[row] for row in rows],
        rows,
        norm=norm,
        batch=batch,
        device=HERE,
    )
    logits, weight = model(image), model[1].weight  # type: ignore[index]
    for row, classes in zip(rows, found, strict=True):
        own = int(label[row])
        dual = 1 if norm == "linf" else 2
        distance = {
            rival: float((logits[row, own] - logits[row, rival]) / (weight[own] - weight[rival]).norm(p=dual))
            for rival in candidates[row]
        }
        assert classes == sorted(distance, key=distance.__getitem__)
    assert found != [candidates[row] for row in rows], "another order than that of the logits"


def test_a_class_without_a_gradient_comes_last() -> None:
    model, image, label, candidates = problem()
    flat = int(candidates[0][0])

    def predict(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        is_dead = torch.arange(CLASSES) == flat
        return torch.where(is_dead[None] | (torch.arange(CLASSES) == label[0])[None], logits.detach(), logits)

    found = nearest_first(predict, image, label, [candidates[0]], [0], norm="linf", batch=1, device=HERE)
    assert found[0][-1] == flat
    assert sorted(found[0]) == sorted(candidates[0])
