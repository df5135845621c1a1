"""APGD in l1 against a loop over single images with an exact projection, and against the truth of a linear model."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import l1_loop

import robust
import robust.versions as versions
from robust.apgd_l1 import ApgdL1, State
from robust.attack_losses import LOSSES
from robust.l1_ball import projected
from robust.lanes import Lanes
from robust.square_l1 import SquareL1

NUM, CLASSES, EPS, ITERATIONS = 5, 5, 1.5, 60


class Trace(NamedTuple):
    images: list[Tensor]  # what was looked at
    sizes: list[float]
    shares: list[float]
    returns: list[int]  # looks behind which it went back to another point
    best: list[Tensor]  # one: of the highest loss


def loop(
    model: nn.Module,
    clean: Tensor,
    label: Tensor,
    start: Tensor,
    name: str,
    target: Tensor,
    *,
    eps: float = EPS,
    iterations: int = ITERATIONS,
    is_known: bool = False,
) -> Trace:
    """A published run on one image, with Python's branches; `is_known`: the start is another run's best point."""
    count, window = clean.numel(), max(int(0.04 * iterations), 1)
    image, size, share, support = start, eps, 0.2, float(count)
    if is_known:
        support = float(((start - clean).abs() > 1e-7).sum())
        share = support / count / 1.5
    best, best_loss, best_gradient = image, -float("inf"), torch.zeros_like(image)
    trace = Trace([], [], [], [], [])
    for look in range(iterations + 1):
        trace.images.append(image)
        leaf = image.clone().requires_grad_(True)
        loss = LOSSES[name](model(leaf[None]), label, target)[0]  # type: ignore[index]
        (gradient,) = torch.autograd.grad(loss, leaf)
        loss = loss.detach()
        if float(loss) > best_loss:
            best, best_loss, best_gradient = image, float(loss), gradient
        if look and look % window == 0:
            moved = float(((best - clean).abs() > 1e-7).sum())
            if moved / support < 0.95:
                trace.returns.extend([look] * (not torch.equal(image, best)))
                size, image, gradient = eps, best, best_gradient
            else:
                size = max(size / 1.5, eps / 10)
            share, support = moved / count / 1.5, moved
        trace.sizes.append(size)
        trace.shares.append(share)
        order = gradient.abs().flatten().sort().values
        least = order[min(max(int((1.0 - share) * count), 0), count - 1)]
        sparse = torch.where(gradient.abs() >= least, gradient.sign(), torch.zeros_like(gradient))
        moved_to = image + size * sparse / (sparse.abs().sum() + 1e-10)
        image = (clean + l1_loop.ball_and_box(moved_to - clean, clean, eps)).clamp(0.0, 1.0)
    trace.best.append(best)
    return trace


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(6 * 36, CLASSES))
    layers[0].weight.data *= 4.0  # so that steps overshoot
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, 6, 6, generator=generator, dtype=torch.float64)
    order = model(clean).argsort(dim=1, descending=True)
    radius = torch.full((NUM,), EPS, dtype=torch.float64)
    return Lanes(clean, order[:, 0], order[:, 1], radius, torch.arange(NUM) * 7919)


@pytest.mark.parametrize("name", ["ce", "dlr-targeted"])
def test_every_step_equals_the_loop(model: nn.Module, name: str) -> None:
    lanes, attack = lanes_of(model), ApgdL1(loss=name, iterations=ITERATIONS)  # type: ignore[arg-type]
    state = attack.init(lanes)
    start, looks = state.image, list[State]()
    for _ in range(attack.steps):
        looks.append(state)
        state = attack.step(model, state)
        state = state._replace(found=torch.zeros_like(state.found))
    looks.append(state)
    num_returns = 0
    for row in range(NUM):
        here = slice(row, row + 1)
        trace = loop(model, lanes.clean[row], lanes.label[here], start[row], name, lanes.target[here])
        assert len(set(trace.shares)) > 3, "the steps were to become sparser"
        for number, wanted in enumerate(trace.images):
            assert torch.allclose(looks[number].image[row], wanted, rtol=0, atol=1e-8), number
        assert [float(s.size[row]) for s in looks[1:]] == pytest.approx(trace.sizes, rel=1e-9)
        assert [float(s.share[row]) for s in looks[1:]] == pytest.approx(trace.shares, rel=1e-9)
        num_returns += len(trace.returns)
    assert num_returns, "a lane was to go back"


@pytest.mark.parametrize("iterations", [10, 30])
def test_runs_in_larger_balls_come_first(model: nn.Module, iterations: int) -> None:
    lanes, attack = lanes_of(model), ApgdL1(iterations=iterations, large_first=True)
    state, looks = attack.init(lanes), list[State]()
    for _ in range(attack.steps):
        looks.append(state)
        state = attack.step(model, state)
        state = state._replace(found=torch.zeros_like(state.found))
    third = 3 * iterations // 10
    runs = [(3.0, third), (2.0, third), (1.0, iterations - 2 * third)]
    assert attack.steps == iterations + 3
    for row in range(2):
        here, images = slice(row, row + 1), list[Tensor]()
        start = looks[0].image[row]
        for radius, count in runs:
            start = lanes.clean[row] + l1_loop.ball_and_box(
                start - lanes.clean[row], lanes.clean[row], radius * EPS
            )
            settings = {"eps": radius * EPS, "iterations": count, "is_known": True}
            label, target = lanes.label[here], lanes.target[here]
            trace = loop(model, lanes.clean[row], label, start, "ce", target, **settings)  # type: ignore[arg-type]
            images += trace.images
            start = trace.best[0]
        for number, wanted in enumerate(images):
            assert torch.allclose(looks[number].image[row], wanted, rtol=0, atol=1e-8), number
    lengths = [float((s.image - lanes.clean).abs().flatten(1).sum(1).max()) / EPS for s in looks]
    assert 1.9 < max(lengths[third + 1 : 2 * third + 2]) <= 2 + 1e-9


def test_only_what_the_last_run_finds_counts(model: nn.Module) -> None:
    lanes, attack = lanes_of(model), ApgdL1(iterations=10, large_first=True)
    state = attack.init(lanes._replace(label=(lanes.label + 1) % CLASSES))  # wrong wherever one looks
    for _ in range(8):
        assert not bool(state.found.any())
        state = attack.step(model, state)
    state = attack.step(model, state)
    assert bool(state.found.all())
    inside = (state.adversarial - lanes.clean).abs().flatten(1).sum(1)
    assert float(inside.max()) <= EPS + 1e-9


@pytest.mark.parametrize("scale", [0.001, 0.1, 3.0])
def test_the_projection_is_the_exact_one(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(8, 3, 5, 7, generator=generator, dtype=torch.float64)
    clean[0] = clean[0].round()
    change = scale * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.1, 6.0, 8, dtype=torch.float64)
    found = projected(change, clean, eps)
    for row in range(8):
        wanted = l1_loop.ball_and_box(change[row], clean[row], float(eps[row]))
        assert torch.allclose(found[row], wanted, rtol=0, atol=1e-9)
    inside = clean + found
    assert float((found.abs().flatten(1).sum(1) - eps).max()) < 1e-9
    assert float(inside.min()) >= 0.0
    assert float(inside.max()) <= 1.0
    assert torch.allclose(projected(found, clean, eps), found, atol=1e-9), "what lies inside stays"


def least_margin(weight: Tensor, image: Tensor, own: int, rival: int, eps: float) -> float:
    """Of a linear model: the steepest pixels go to their walls until the length is spent."""
    w = weight[own] - weight[rival]
    flat = image.double().flatten()
    room = torch.where(w > 0, flat, 1.0 - flat)
    margin, left = float(w @ flat), eps
    for place in w.abs().argsort(descending=True).tolist():
        taken = min(left, float(room[place]))
        margin, left = margin - taken * float(w[place].abs()), left - taken
    return margin


@pytest.mark.parametrize("name", ["apgd", "fab", "fab untargeted", "autoattack"])
def test_a_linear_model_is_broken_where_it_can_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "SquareL1", lambda: SquareL1(queries=20))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES, bias=False)).eval().requires_grad_(False)
    weight: Tensor = net[1].weight.double()  # type: ignore[union-attr, operator, assignment]
    image = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    label = net(image).argmax(1)
    eps = 0.6
    least = torch.tensor(
        [
            min(
                least_margin(weight, image[i], int(label[i]), rival, eps)
                for rival in range(CLASSES)
                if rival != label[i]
            )
            for i in range(40)
        ]
    )
    settings = {
        "apgd": {"loss": "dlr-targeted"},
        "fab": {},
        "fab untargeted": {"targets": 0},
        "autoattack": {"chunk": 50},
    }[name]
    attack = getattr(robust, name.removesuffix(" untargeted"))
    result = attack(net, image, label, eps=eps, norm="l1", **settings)
    sure = least.abs() > 0.01
    assert torch.equal(result.robust[sure], least[sure] > 0)
    assert 5 < int(result.robust.sum()) < 35
    assert float((result.adversarial - image).abs().flatten(1).sum(1).max()) <= eps + 1e-5
    ids = {"apgd": "apgd-t-4-targets", "fab": "fab-t-4-targets", "autoattack": "standard-4-targets"}
    assert result.version == ids.get(name, "fab")


def test_settings_that_mean_nothing_are_one_line() -> None:
    image, label = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])

    def predict(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5]

    with pytest.raises(ValueError, match="both are at least 1"):
        ApgdL1(iterations=0)
    with pytest.raises(ValueError, match="no loss 'cw'"):
        ApgdL1(loss="cw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside \\(0, 48\\]"):
        robust.apgd(predict, image, label, eps=50.0, norm="l1")
    with pytest.raises(ValueError, match="4 iterations leave none for the radius itself"):
        ApgdL1(iterations=4, large_first=True)
    for function in (robust.autoattack, robust.fab, robust.square):
        with pytest.raises(ValueError, match="norm 'l3' is not defined here; use linf or l2 or l1"):
            function(predict, image, label, eps=1.0, norm="l3")  # type: ignore[operator]
