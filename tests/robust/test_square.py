"""Square in lanes: against a loop that is told the same draws, the published schedule, and what a query may do."""

import math

import pytest
import torch
from torch import Tensor, nn

from robust.lanes import Lanes
from robust.noise import noise
from robust.square import Square
from robust.stream import at_step

NUM, SIZE, EPS = 4, 12, 0.02


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


def published_p(query: int, p_init: float = 0.8) -> float:
    """The schedule in words of the paper's code: halved behind 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000."""
    return p_init / 2 ** sum(query > limit for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def margin(model: nn.Module, image: Tensor, label: int) -> float:
    logits = model(image[None])[0]
    others = torch.cat((logits[:label], logits[label + 1 :]))
    return float(logits[label] - others.max())


def loop(model: nn.Module, clean: Tensor, label: int, seed: int, queries: int) -> tuple[Tensor, float]:
    """One image, greedily, with slices and Python's branches."""
    seeds = torch.tensor([seed])
    signs = torch.where(noise(seeds, (3, 1, SIZE))[0] < 0.5, -1.0, 1.0).double()
    best = (clean + EPS * signs).clamp(0, 1)
    smallest = margin(model, best, label)
    for query in range(queries):
        draw = noise(at_step(seeds, torch.tensor([query + 1]), purpose=1), (5,))[0]
        side = min(max(round(math.sqrt(published_p(query) * SIZE * SIZE)), 1), SIZE)
        y, x = (int(float(d) * (SIZE - side)) for d in draw[:2])
        candidate = best.clone()
        for channel in range(3):
            colour = -1.0 if float(draw[2 + channel]) < 0.5 else 1.0
            candidate[channel, y : y + side, x : x + side] += 2 * EPS * colour
        candidate = torch.min(torch.max(candidate, clean - EPS), clean + EPS).clamp(0, 1)
        found = margin(model, candidate, label)
        if found < smallest:
            best, smallest = candidate, found
    return best, smallest


def test_every_lane_equals_the_loop(model: nn.Module) -> None:
    lanes = lanes_of(model)
    attack = Square(queries=80)
    state = attack.init(lanes)
    for _ in range(attack.steps):
        state = attack.step(model, state)
        state = state._replace(found=torch.zeros_like(state.found))
    for row in range(NUM):
        best, smallest = loop(model, lanes.clean[row], int(lanes.label[row]), int(lanes.seed[row]), 80)
        # A query that is misclassified is taken even where its margin is no smaller; these images stay right.
        assert smallest > 0
        assert float(state.margin[row]) == pytest.approx(smallest, rel=1e-9)
        assert torch.allclose(state.adversarial[row], best, atol=1e-12)


def test_the_first_query_is_about_the_start(model: nn.Module) -> None:
    lanes = lanes_of(model)
    attack = Square(queries=3)
    start = attack.init(lanes)
    looked = attack.step(model, start)
    wanted = [
        margin(model, image, int(label)) for image, label in zip(start.adversarial, lanes.label, strict=True)
    ]
    assert torch.equal(looked.adversarial, start.adversarial)
    assert looked.margin.tolist() == pytest.approx(wanted, rel=1e-9)


def test_sides_follow_the_published_schedule() -> None:
    attack = Square(queries=5000)
    queries = torch.arange(5000)
    found = attack._side(queries, height=32, width=32).tolist()
    wanted = [max(round(math.sqrt(published_p(q) * 32 * 32)), 1) for q in range(5000)]
    assert found == wanted
    assert found[0] == 29
    assert found[4999] == 3


def test_a_rescaled_schedule_ends_where_the_whole_one_does() -> None:
    found = Square(queries=100, rescale=True)._side(torch.tensor([0, 99]), height=224, width=224).tolist()
    assert found == [200, round(math.sqrt(0.8 / 2**9 * 224 * 224))]


def test_images_need_not_be_square(model: nn.Module) -> None:
    clean = torch.rand(2, 3, 4, 30)
    lanes = Lanes(
        clean,
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.full((2,), 0.1),
        torch.arange(2),
    )

    def predict(image: Tensor) -> Tensor:
        return torch.stack((torch.ones(len(image)), image.mean((1, 2, 3))), dim=1)

    state = Square(queries=30).init(lanes)
    for _ in range(31):
        state = Square(queries=30).step(predict, state)
    assert float((state.adversarial - clean).abs().max()) <= 0.1 + 1e-6


def test_more_queries_never_raise_the_margin(model: nn.Module) -> None:
    state, attack = Square().init(lanes_of(model)), Square()
    margins = []
    for _ in range(40):
        state = attack.step(model, state)
        margins.append(state.margin)
    falls = torch.stack(margins).diff(dim=0)
    assert bool((falls <= 0).all())
    assert bool((falls < 0).any())
