"""Lanes that are refilled: an answer depends on its question alone, whatever the order, the company and the chunks."""

import pytest
import torch
from torch import Tensor, nn

from robust.apgd import Apgd
from robust.fab import Fab
from robust.lanes import Component
from robust.square import Square
from robust.stage import Answer, Device, Stage, Step
from robust.stream import question_seed

NUM, LANES = 21, 8
HERE = Device(feed=lambda tensor: tensor)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    return layers.eval().requires_grad_(False)


def images() -> Tensor:
    return torch.rand(NUM, 3, 8, 8, generator=torch.Generator().manual_seed(9))


def stage_of(
    model: nn.Module,
    component: Component,
    order: list[int],
    *,
    lanes: int = LANES,
    chunk: int = 5,
    device: Device = HERE,
) -> Stage:
    image = images()[torch.tensor(order)]
    return Stage(
        component=component,
        predict=model,
        image=image,
        label=model(image).argmax(1),
        eps=torch.tensor(2.5 / 255),
        keys=order,
        seed=3,
        num_lanes=lanes,
        chunk=chunk,
        device=device,
    )


def answers_of(stage: Stage, *, targets: int) -> dict[tuple[int, int], Answer]:
    """By key and number of the try."""
    ranks = stage.predict(stage.image).argsort(dim=1, descending=True).tolist()
    tries = {row: ranks[row][1 : 1 + targets] if targets else [ranks[row][0]] for row in range(NUM)}
    found = list(stage.run(tries))
    assert len({(a.row, a.number) for a in found}) == len(found), "a question was answered twice"
    return {(stage.keys[a.row], a.number): a for a in found}


CASES = [
    pytest.param(Apgd(loss="ce", iterations=12), 0, id="apgd-ce"),
    pytest.param(Apgd(loss="dlr-targeted", iterations=12), 3, id="apgd-t"),
    pytest.param(Fab(iterations=8), 3, id="fab-t"),
    pytest.param(Square(queries=30), 0, id="square"),
]


@pytest.mark.parametrize(("component", "targets"), CASES)
def test_answers_are_the_same_bits_in_any_order_and_chunks(
    model: nn.Module, component: Component, targets: int
) -> None:
    straight = stage_of(model, component, list(range(NUM)))
    mixed_order = torch.randperm(NUM, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = stage_of(model, component, mixed_order, chunk=3)
    first, second = (answers_of(stage, targets=targets) for stage in (straight, mixed))
    assert {k: a._replace(row=0) for k, a in first.items()} == {
        k: a._replace(row=0) for k, a in second.items()
    }
    assert any(a.found for a in first.values())
    assert not all(a.found for a in first.values())
    for place, key in enumerate(mixed_order):
        assert torch.equal(mixed.adversarial[place], straight.adversarial[key])


@pytest.mark.parametrize(("component", "targets"), CASES)
def test_other_numbers_of_lanes_give_the_same_verdicts(
    model: nn.Module, component: Component, targets: int
) -> None:
    found = [
        {
            k: a.found
            for k, a in answers_of(
                stage_of(model, component, list(range(NUM)), lanes=n), targets=targets
            ).items()
        }
        for n in (3, 32)
    ]
    assert found[0] == found[1]


def test_what_was_found_is_wrong_and_inside_the_ball(model: nn.Module) -> None:
    stage = stage_of(model, Apgd(loss="ce", iterations=12), list(range(NUM)))
    answers = answers_of(stage, targets=0)
    wrong = model(stage.adversarial[:NUM]).argmax(1) != stage.label
    assert wrong.tolist() == [answers[key, 0].found for key in range(NUM)]
    change = (stage.adversarial[:NUM] - stage.image).abs().flatten(1).amax(1)
    assert float(change.max()) <= 2.5 / 255 + 1e-7
    assert not change[~wrong].any(), "what was not broken stays as it was"


def test_a_full_batch_is_asked_no_more_than_its_questions_need(model: nn.Module) -> None:
    component = Apgd(loss="ce", iterations=10)
    stage = stage_of(model, component, list(range(NUM)), lanes=NUM)
    answers_of(stage, targets=0)
    assert stage.steps_run == component.steps


def test_streams_differ_by_image_component_and_try() -> None:
    seeds = {
        question_seed(seed, key, component, number)
        for seed in (0, 1)
        for key in (0, 1, 2**40, -1)
        for component in ("apgd-ce", "apgd-t", "a-name-that-is-longer-than-eight-bytes")
        for number in (0, 1)
    }
    assert len(seeds) == 48
    assert all(-(1 << 63) <= seed < 1 << 63 for seed in seeds)


def test_every_step_is_the_one_that_the_device_has_made_ready(model: nn.Module) -> None:
    calls: list[int] = []

    def repeated(step: Step) -> Step:
        def counted(state: object) -> object:
            calls.append(1)
            return step(state)

        return counted

    stage = stage_of(
        model, Square(queries=30), list(range(NUM)), device=Device(feed=HERE.feed, repeated=repeated)
    )
    answers_of(stage, targets=0)
    assert len(calls) == stage.steps_run > 0
