"""FAB-T in lanes against a loop over single images, and what a hit is."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import fab_loop

from robust.fab import Fab
from robust.lanes import Lanes
from robust.threat import distance

NUM, ITERATIONS = 5, 30


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, 5))
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module, eps: float | Tensor) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, 6, 6, generator=generator, dtype=torch.float64)
    order = model(clean).argsort(dim=1, descending=True)
    radius = torch.as_tensor(eps, dtype=torch.float64).expand(NUM)
    return Lanes(clean, order[:, 0], order[:, 1], radius, torch.arange(NUM))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_iterate_equals_the_loop(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 1e-9)  # nothing is ever near enough: all iterations are made
    attack = Fab(norm=norm, iterations=ITERATIONS)
    state, images = attack.init(lanes), []
    for _ in range(ITERATIONS):
        state = attack.step(model, state)
        images.append(state.image)
    for row in range(NUM):
        label, target = int(lanes.label[row]), int(lanes.target[row])
        iterates, best = fab_loop.fab(
            model, lanes.clean[row], label, target, norm=norm, iterations=ITERATIONS
        )
        assert best < float("inf"), "the loop was to cross the boundary"
        for number, (ours, theirs) in enumerate(zip(images, iterates, strict=True)):
            assert torch.allclose(ours[row], theirs, rtol=0, atol=1e-6), number


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_radius_is_broken_if_and_only_if_the_nearest_point_lies_inside(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 1.0)
    nearest = torch.tensor(
        [
            fab_loop.fab(
                model,
                lanes.clean[i],
                int(lanes.label[i]),
                int(lanes.target[i]),
                norm=norm,
                iterations=ITERATIONS,
            )[1]
            for i in range(NUM)
        ],
        dtype=torch.float64,
    )
    attack = Fab(norm=norm, iterations=ITERATIONS)
    for factor, broken in ((1.001, True), (0.999, False)):
        state = attack.init(lanes._replace(eps=nearest * factor))
        for _ in range(ITERATIONS):
            state = attack.step(model, state)
        assert state.found.tolist() == [broken] * NUM
        inside = distance(state.adversarial, lanes.clean, norm) <= nearest * factor
        assert bool(inside.all())
        wrong = model(state.adversarial).argmax(1) != lanes.label
        assert wrong.tolist() == [broken] * NUM


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_pixel_without_a_gradient_stays_and_the_others_move(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 1e-9)

    def predict(image: Tensor) -> Tensor:
        pixel = image[:, :, :1, :1]
        lost = 0.0 * (pixel - pixel.detach()).abs().sqrt().sum((1, 2, 3))[:, None]
        logits: Tensor = model(image) + lost * torch.arange(5)
        return logits

    attack = Fab(norm=norm, iterations=3)  # type: ignore[arg-type]
    state = attack.init(lanes)
    for _ in range(3):
        state = attack.step(predict, state)
    assert torch.isfinite(state.image).all()
    moved = (state.image - lanes.clean).abs().amax(dim=(0, 1)).flatten() > 1e-12
    assert not moved[0]
    assert moved[1:].all() or norm == "l1", "a few pixels go to their walls"
    assert moved.any()
