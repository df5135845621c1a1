"""Square in l1 in lanes: against a loop that is told the same draws; its bumps against squares laid one on another."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import l1_loop

from robust.bumps import bumps
from robust.lanes import Lanes
from robust.square_l1 import SquareL1

NUM, SIZE, EPS, QUERIES = 3, 15, 0.5, 60


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * SIZE * SIZE, 5)
    )
    return layers.double().eval().requires_grad_(False)


def lanes_of(model: nn.Module) -> Lanes:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(NUM, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    label = model(clean).argmax(1)
    return Lanes(clean, label, label, torch.full((NUM,), EPS, dtype=torch.float64), torch.arange(NUM) * 31)


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("side", [1, 2, 3, 6, 9, 29])
def test_bumps_are_piles_of_squares(side: int, is_turned: bool) -> None:
    """In a window that begins at row 2 and column 1 of a larger image."""
    row, column = torch.arange(side + 4)[None] - 2, torch.arange(side + 3)[None] - 1
    settings: Any = {"norm": "l1", "dtype": torch.float64}
    found = bumps(row, column, torch.tensor([side]), torch.tensor([is_turned]), **settings)[0]
    wanted = torch.zeros(side + 4, side + 3, dtype=torch.float64)
    wanted[2 : 2 + side, 1 : 1 + side] = l1_loop.pair(side, is_turned=is_turned)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert float(found.abs().sum()) == pytest.approx(1)


def test_every_lane_equals_the_loop(model: nn.Module) -> None:
    lanes = lanes_of(model)
    attack = SquareL1(queries=QUERIES)
    state = attack.init(lanes)
    starts = [l1_loop.square_start(lanes.clean[row], int(lanes.seed[row]), EPS) for row in range(NUM)]
    assert torch.allclose(state.adversarial, torch.stack(starts), atol=1e-9)
    for _ in range(attack.steps):
        state = attack.step(model, state)
        state = state._replace(found=torch.zeros_like(state.found))
    for row in range(NUM):
        label, seed = int(lanes.label[row]), int(lanes.seed[row])
        best, smallest = l1_loop.square(model, lanes.clean[row], label, seed, eps=EPS, queries=QUERIES)
        assert smallest > 0, "a query that is misclassified is taken in any case; these images stay right"
        assert smallest < l1_loop.margin(model, starts[row], label)
        assert float(state.margin[row]) == pytest.approx(smallest, rel=1e-7)
        assert torch.allclose(state.adversarial[row], best, atol=1e-8)


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (224, 224), (2, 2), (33, 40)])
def test_any_shape_stays_inside_the_ball_and_the_box(shape: tuple[int, int]) -> None:
    clean = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    zero, eps = torch.zeros(2, dtype=torch.int64), torch.tensor([0.5, 30.0])
    lanes = Lanes(clean, zero, zero, eps, torch.arange(2))

    def predict(image: Tensor) -> Tensor:
        return torch.stack((torch.ones(len(image)), image.mean((1, 2, 3))), dim=1)

    attack: Any = SquareL1(queries=15)
    state = attack.init(lanes)
    starts = state.adversarial
    for _ in range(attack.steps):
        state = attack.step(predict, state)
    assert torch.isfinite(state.adversarial).all()
    length = (state.adversarial.double() - clean.double()).flatten(1).abs().sum(dim=1)
    assert bool((length <= eps + 2e-6 * eps + 6e-8 * clean[0].numel()).all())
    assert float(length.min()) > 0.1
    assert state.adversarial.min() >= 0.0
    assert state.adversarial.max() <= 1.0
    assert not torch.equal(starts, state.adversarial) or min(shape) < 4


def test_a_lanes_draws_are_its_own(model: nn.Module) -> None:
    """The same question beside other ones, and behind them, gives the same bits."""
    lanes, attack = lanes_of(model), SquareL1(queries=12)
    turned = Lanes(*(part.flip(0) for part in lanes))
    first, second = attack.init(lanes), attack.init(turned)
    for _ in range(attack.steps):
        first, second = attack.step(model, first), attack.step(model, second)
    assert torch.equal(first.adversarial, second.adversarial.flip(0))
