"""Untargeted FAB in lanes against a loop over images with all gradients at once, for any split of the classes."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import fab_loop

from robust.fab_untargeted import FabUntargeted
from robust.lanes import Lanes

NUM, CLASSES, ITERATIONS = 5, 6, 20


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module, eps: float) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, 6, 6, generator=generator, dtype=torch.float64)
    label = model(clean).argmax(1)
    return Lanes(clean, label, label, torch.full((NUM,), eps, dtype=torch.float64), torch.arange(NUM))


def trace(attack: FabUntargeted, model: nn.Module, lanes: Lanes) -> list[Tensor]:
    """The iterate behind each iteration."""
    state, images = attack.init(lanes), []
    for number in range(attack.steps):
        state = attack.step(model, state)
        if (number + 1) % (attack.steps // attack.iterations) == 0:
            images.append(state.image)
    assert state.step.tolist() == [attack.steps] * NUM
    return images


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_iterate_equals_the_loop(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 1e-9)
    images = trace(FabUntargeted(num_classes=CLASSES, norm=norm, iterations=ITERATIONS), model, lanes)
    visited = set()
    for row in range(NUM):
        iterates, rivals = fab_loop.fab_untargeted(
            model, lanes.clean[row], int(lanes.label[row]), norm=norm, iterations=ITERATIONS
        )
        visited |= set(rivals)
        for number, (ours, theirs) in enumerate(zip(images, iterates, strict=True)):
            assert torch.allclose(ours[row], theirs, rtol=0, atol=1e-6), number
    assert len(visited) > 1, "more than one class was to be nearest"


@pytest.mark.parametrize("at_once", [1, 2, 3, 50])
def test_any_number_of_gradients_a_step_gives_the_same_iterates(model: nn.Module, at_once: int) -> None:
    lanes = lanes_of(model, 1e-9)
    whole = FabUntargeted(num_classes=CLASSES, iterations=6)
    split = FabUntargeted(num_classes=CLASSES, iterations=6, at_once=at_once)
    parts = -(-(CLASSES - 1) // at_once)
    assert split.steps == 6 * parts
    assert split.passes.backward * parts >= CLASSES - 1
    for one, other in zip(trace(whole, model, lanes), trace(split, model, lanes), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_restart_begins_on_the_sphere_of_half_the_radius(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 0.1)._replace(clean=torch.full((NUM, 3, 6, 6), 0.5, dtype=torch.float64))
    attack = FabUntargeted(num_classes=CLASSES, norm=norm, random_start=True)
    change = (attack.init(lanes).image - lanes.clean).flatten(1)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    length = torch.linalg.vector_norm(change, ord=order, dim=1)
    assert torch.allclose(length, lanes.eps / 2, atol=1e-6)
    assert attack.name == "fab-restarts"
    assert torch.equal(FabUntargeted(num_classes=CLASSES).init(lanes).image, lanes.clean)


def test_a_hit_is_wrong_and_inside_the_radius(model: nn.Module) -> None:
    lanes = lanes_of(model, 0.2)
    attack = FabUntargeted(num_classes=CLASSES, iterations=ITERATIONS)
    state = attack.init(lanes)
    for _ in range(attack.steps):
        state = attack.step(model, state)
    assert bool(state.found.all())
    assert float((state.adversarial - lanes.clean).abs().max()) <= 0.2
    assert not bool((model(state.adversarial).argmax(1) == lanes.label).any())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="1 classes have none"):
        FabUntargeted(num_classes=1)
    with pytest.raises(ValueError, match="0 gradients a step"):
        FabUntargeted(num_classes=3, at_once=0)
