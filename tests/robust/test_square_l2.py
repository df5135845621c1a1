"""Square in l2 in lanes: against a loop that is told the same draws, its bumps against squares laid one on another."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robust.bumps import bumps
from robust.lanes import Lanes
from robust.noise import noise
from robust.square_l2 import SquareL2
from robust.stream import at_step

NUM, SIZE, EPS = 4, 15, 0.4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * SIZE * SIZE, 5)
    )
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module, eps: float = EPS) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    label = model(clean).argmax(1)
    return Lanes(clean, label, label, torch.full((NUM,), eps, dtype=torch.float64), torch.arange(NUM) * 31)


def pile(down: int, across: int) -> Tensor:
    """Squares around the middle, the k-th reaching k places and 1 / (k+1)^2 high, brought to length 1."""
    made = torch.zeros(down, across, dtype=torch.float64)
    for k in range(max(down // 2, across // 2) + 1):
        top, left = max(down // 2 - k, 0), max(across // 2 - k, 0)
        made[top : down // 2 + k + 1, left : across // 2 + k + 1] += 1 / (k + 1) ** 2
    return made / made.norm().clamp(min=1e-300)


def pair(side: int, *, is_turned: bool) -> Tensor:
    made = torch.cat((pile(side // 2, side), -pile(side - side // 2, side)))
    made = made / made.norm()
    return made.T if is_turned else made


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("side", [1, 2, 3, 6, 9, 29])
def test_bumps_are_piles_of_squares(side: int, is_turned: bool) -> None:
    """In a window that begins at row 2 and column 1 of a larger image."""
    row, column = torch.arange(side + 4)[None] - 2, torch.arange(side + 3)[None] - 1
    found = bumps(
        row, column, torch.tensor([side]), torch.tensor([is_turned]), norm="l2", dtype=torch.float64
    )[0]
    wanted = torch.zeros(side + 4, side + 3, dtype=torch.float64)
    wanted[2 : 2 + side, 1 : 1 + side] = pair(side, is_turned=is_turned)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert float(found.norm()) == pytest.approx(1)


def margin(model: nn.Module, image: Tensor, label: int) -> float:
    logits = model(image[None])[0]
    return float(logits[label] - torch.cat((logits[:label], logits[label + 1 :])).max())


def at_length(delta: Tensor, clean: Tensor, eps: float) -> Tensor:
    return (clean + delta / (delta.norm() + 1e-12) * eps).clamp(0, 1)


def start(clean: Tensor, seed: int, eps: float) -> Tensor:
    """SIZE is a multiple of 5: five tiles by five."""
    side = SIZE // 5
    draws = noise(torch.tensor([seed]), (4, 5, 5))[0]
    delta = torch.zeros_like(clean)
    for i in range(5):
        for j in range(5):
            tile = pair(side, is_turned=float(draws[0, i, j]) < 0.5)
            for channel in range(3):
                sign = -1.0 if float(draws[1 + channel, i, j]) < 0.5 else 1.0
                delta[channel, i * side : (i + 1) * side, j * side : (j + 1) * side] = sign * tile
    return at_length(delta, clean, eps)


def loop(model: nn.Module, clean: Tensor, label: int, seed: int, queries: int) -> tuple[Tensor, float]:
    """One image, greedily, with slices and Python's branches."""
    best = start(clean, seed, EPS)
    smallest = margin(model, best, label)
    for query in range(queries):
        draw = noise(at_step(torch.tensor([seed]), torch.tensor([query + 1]), purpose=1), (8,))[0]
        p = 0.8 / 2 ** sum(query > limit for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = max(round(math.sqrt(p * SIZE * SIZE)), 3)
        side += side % 2 == 0
        y, x, y2, x2 = (int(float(d) * (SIZE - side)) for d in draw[:4])
        one, two = (
            (slice(None), slice(y, y + side), slice(x, x + side)),
            (slice(None), slice(y2, y2 + side), slice(x2, x2 + side)),
        )
        delta = best - clean
        is_either = torch.zeros_like(delta, dtype=torch.bool)
        is_either[one] = is_either[two] = True
        held = float(delta[is_either].norm())
        unused = max(EPS**2 - float(delta.norm()) ** 2, 0.0)
        fresh = torch.zeros(3, side, side, dtype=torch.float64)
        for channel in range(3):
            sign = -1.0 if float(draw[5 + channel]) < 0.5 else 1.0
            old = delta[one][channel]
            made = sign * pair(side, is_turned=float(draw[4]) < 0.5) + old / (1e-12 + old.norm())
            fresh[channel] = made / (1e-12 + made.norm()) * math.sqrt(unused / 3 + held**2)
        delta[two] = 0.0
        delta[one] = fresh
        candidate = at_length(delta, clean, EPS)
        found = margin(model, candidate, label)
        if found < smallest:
            best, smallest = candidate, found
    return best, smallest


def test_every_lane_equals_the_loop(model: nn.Module) -> None:
    lanes = lanes_of(model)
    attack = SquareL2(queries=80)
    state = attack.init(lanes)
    for row in range(NUM):
        assert torch.allclose(
            state.adversarial[row], start(lanes.clean[row], int(lanes.seed[row]), EPS), atol=1e-12
        )
    for _ in range(attack.steps):
        state = attack.step(model, state)
        state = state._replace(found=torch.zeros_like(state.found))
    for row in range(NUM):
        label, seed = int(lanes.label[row]), int(lanes.seed[row])
        best, smallest = loop(model, lanes.clean[row], label, seed, 80)
        assert smallest > 0, "a query that is misclassified is taken in any case; these images stay right"
        assert smallest < margin(model, start(lanes.clean[row], seed, EPS), label)
        assert float(state.margin[row]) == pytest.approx(smallest, rel=1e-8)
        assert torch.allclose(state.adversarial[row], best, atol=1e-9)


def test_sides_follow_the_published_schedule() -> None:
    attack = SquareL2(queries=5000)
    found = attack.side(torch.tensor([0, 11, 51, 4999]), height=32, width=32).tolist()
    assert found == [29, 21, 15, 3]
    assert SquareL2().side(torch.tensor([0]), height=4, width=4).tolist() == [3]


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4), (12, 12), (224, 224), (2, 2), (33, 40)])
def test_any_shape_stays_inside_the_ball_and_the_box(shape: tuple[int, int]) -> None:
    clean = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, dtype=torch.int64)
    lanes = Lanes(clean, zero, zero, torch.full((2,), 0.5), torch.arange(2))

    def predict(image: Tensor) -> Tensor:
        return torch.stack((torch.ones(len(image)), image.mean((1, 2, 3))), dim=1)

    attack: Any = SquareL2(queries=15)
    state = attack.init(lanes)
    starts = state.adversarial
    for _ in range(attack.steps):
        state = attack.step(predict, state)
    assert torch.isfinite(state.adversarial).all()
    length = (state.adversarial - clean).flatten(1).norm(dim=1)
    assert float(length.max()) <= 0.5 + 1e-5
    assert float(length.min()) > 0.1
    assert state.adversarial.min() >= 0.0
    assert state.adversarial.max() <= 1.0
    assert not torch.equal(starts, state.adversarial) or min(shape) < 4
