"""APGD in lanes against a loop over single images, number by number, and what a lane may not notice."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import apgd_loop

from robust.apgd import Apgd, State
from robust.attack_losses import LOSSES
from robust.lanes import Lanes
from robust.sphere import SPHERES

NUM, CLASSES = 6, 5


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module, eps: float) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, 6, 6, generator=generator, dtype=torch.float64)
    order = model(clean).argsort(dim=1, descending=True)
    return Lanes(
        clean=clean,
        label=order[:, 0],
        target=order[:, 1],
        eps=torch.full((NUM,), eps, dtype=torch.float64),
        seed=torch.arange(NUM) * 7919,
    )


def never_found(state: State) -> State:
    """A lane stops looking once it has found something; a comparison wants all its steps."""
    return state._replace(found=torch.zeros_like(state.found))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["ce", "dlr", "dlr-targeted"])
def test_every_step_equals_the_loop(model: nn.Module, name: str, norm: str) -> None:
    eps = {"linf": 0.02, "l2": 0.2}[norm]
    lanes = lanes_of(model, eps)
    attack = Apgd(loss=name, norm=norm)
    state = attack.init(lanes)
    starts = state.image
    looks: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(attack.steps):
        looked = state.image
        state = never_found(attack.step(model, state))
        looks.append((looked, state.window.last_loss, state.size))
    assert state.step.tolist() == [attack.steps] * NUM
    for row in range(NUM):
        label, target = lanes.label[row : row + 1], lanes.target[row : row + 1]
        trace = apgd_loop.apgd(
            model,
            lanes.clean[row],
            int(label),
            starts[row],
            lambda z, label=label, target=target: LOSSES[name](z[None], label, target)[0],
            eps=eps,
            norm=norm,
        )
        assert len(set(trace.sizes)) > 2, "the step size was to change"
        for number, (image, loss, _) in enumerate(looks):
            assert torch.allclose(image[row], trace.images[number], rtol=0, atol=1e-9), number
            if number:
                assert float(loss[row]) == pytest.approx(trace.losses[number], abs=1e-8)
        # The size behind look i is that of move i.
        found = [float(size[row]) for _, _, size in looks[:-1]]
        assert found == pytest.approx(trace.sizes, rel=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_start_lies_on_the_sphere_before_it_meets_the_box(norm: str) -> None:
    clean = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64)
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    from robust.noise import noise

    start = SPHERES[norm].start(clean, eps, torch.arange(4), noise)
    change = (start - clean).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert torch.allclose(length, eps, atol=1e-6)


def test_a_lane_that_found_something_keeps_it(model: nn.Module) -> None:
    attack = Apgd(loss="ce", iterations=20)
    state = attack.init(lanes_of(model, 0.2))
    kept: dict[int, Tensor] = {}
    for _ in range(attack.steps):
        state = attack.step(model, state)
        for row in state.found.nonzero().flatten().tolist():
            kept.setdefault(row, state.adversarial[row].clone())
    assert len(kept) == NUM, "a radius of 0.2 breaks everything"
    for row, image in kept.items():
        assert torch.equal(state.adversarial[row], image)
        assert int(model(image[None]).argmax()) != int(state.lanes.label[row])


def test_a_lane_without_a_hit_makes_all_its_steps_and_no_more(model: nn.Module) -> None:
    attack = Apgd(loss="ce", iterations=7)
    state = attack.init(lanes_of(model, 1e-6))
    for _ in range(12):
        state = attack.step(model, state)
    assert state.step.tolist() == [8] * NUM
    assert not state.found.any()
    assert torch.equal(state.adversarial, state.lanes.clean)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="0 iterations"):
        Apgd(iterations=0)
    with pytest.raises(ValueError, match="averages 0"):
        Apgd(eot=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_pixel_without_a_gradient_stays_and_the_others_move(model: nn.Module, norm: str) -> None:
    lanes = lanes_of(model, 0.1)

    def predict(image: Tensor) -> Tensor:
        pixel = image[:, :, :1, :1]
        return model(image) + 0.0 * (pixel - pixel.detach()).abs().sqrt().sum((1, 2, 3))[:, None]

    attack = Apgd(norm=norm, iterations=3)  # type: ignore[arg-type]
    state = attack.init(lanes)
    first = state.image
    for _ in range(3):
        state = never_found(attack.step(predict, state))
    assert torch.isfinite(state.image).all()
    moved = (state.image - first).abs().amax(dim=(0, 1)) > 0
    assert moved.flatten()[1:].all()


def test_the_probability_margin_is_that_of_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    label = torch.tensor([0, 2])
    p = logits.softmax(1)
    found = LOSSES["probability-margin"](logits, label, label)
    assert torch.allclose(found, torch.stack((p[0, 1] - p[0, 0], p[1, 1] - p[1, 2])))
    sure = torch.tensor([[40.0, 0.0, -1.0]], requires_grad=True)
    LOSSES["probability-margin"](sure, label[:1], label[:1]).sum().backward()
    assert sure.grad is not None
    assert sure.grad[0, 1] > 0, "a gradient towards the rival where the model is sure"
