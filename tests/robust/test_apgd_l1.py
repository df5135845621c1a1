"""APGD in l1 against a loop over single images with an exact projection, and against the truth of a linear model."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.apgd_l1 import ApgdL1, State, projected
from robust.attack_losses import LOSSES
from robust.lanes import Lanes

NUM, CLASSES, EPS, ITERATIONS = 5, 5, 1.5, 60


def exact_projection(change: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Of one image: the shrinking number is tried at all its breakpoints, and solved for between two of them."""
    wanted, sign = change.abs().flatten(), change.sign().flatten()
    room = torch.where(sign > 0, 1.0 - clean.flatten(), clean.flatten())

    def shrunk(by: float) -> Tensor:
        return torch.minimum((wanted - by).clamp(min=0.0), room)

    if float(shrunk(0.0).sum()) <= eps:
        return (sign * shrunk(0.0)).view_as(change)
    breaks = sorted({0.0, *wanted.tolist(), *(b for b in (wanted - room).tolist() if b > 0)})
    low = max(b for b in breaks if float(shrunk(b).sum()) > eps)
    high = min(b for b in breaks if float(shrunk(b).sum()) <= eps)
    long, short = float(shrunk(low).sum()), float(shrunk(high).sum())
    return (sign * shrunk(low + (long - eps) / (long - short) * (high - low))).view_as(change)


class Trace(NamedTuple):
    images: list[Tensor]  # what was looked at
    sizes: list[float]
    shares: list[float]
    returns: list[int]  # looks behind which it went back to another point


def loop(model: nn.Module, clean: Tensor, label: Tensor, start: Tensor, name: str, target: Tensor) -> Trace:
    """The published attack on one image, with Python's branches."""
    count, window = clean.numel(), max(int(0.04 * ITERATIONS), 1)
    image, size, share, support = start, EPS, 0.2, float(count)
    best, best_loss, best_gradient = image, -float("inf"), torch.zeros_like(image)
    trace = Trace([], [], [], [])
    for look in range(ITERATIONS + 1):
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
                size, image, gradient = EPS, best, best_gradient
            else:
                size = max(size / 1.5, EPS / 10)
            share, support = moved / count / 1.5, moved
        trace.sizes.append(size)
        trace.shares.append(share)
        order = gradient.abs().flatten().sort().values
        least = order[min(max(int((1.0 - share) * count), 0), count - 1)]
        sparse = torch.where(gradient.abs() >= least, gradient.sign(), torch.zeros_like(gradient))
        moved_to = image + size * sparse / (sparse.abs().sum() + 1e-10)
        image = (clean + exact_projection(moved_to - clean, clean, EPS)).clamp(0.0, 1.0)
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


@pytest.mark.parametrize("scale", [0.001, 0.1, 3.0])
def test_the_projection_is_the_exact_one(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(8, 3, 5, 7, generator=generator, dtype=torch.float64)
    clean[0] = clean[0].round()
    change = scale * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.1, 6.0, 8, dtype=torch.float64)
    found = projected(change, clean, eps)
    for row in range(8):
        wanted = exact_projection(change[row], clean[row], float(eps[row]))
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


def test_a_linear_model_is_broken_where_it_can_be() -> None:
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
    result = robust.apgd(net, image, label, eps=eps, norm="l1", loss="dlr-targeted")
    sure = least.abs() > 0.01
    assert torch.equal(result.robust[sure], least[sure] > 0)
    assert 5 < int(result.robust.sum()) < 35
    assert float((result.adversarial - image).abs().flatten(1).sum(1).max()) <= eps + 1e-5
    assert result.version == "apgd-t-4-targets"


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
    for function in (robust.autoattack, robust.fab, robust.square):
        with pytest.raises(ValueError, match="norm 'l1' is not defined here"):
            function(predict, image, label, eps=1.0, norm="l1")  # type: ignore[operator]
