"""Numbers of a step that the host counts or the device reads: attack steps, the average's weight, micro-steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from bits.ema import Ema
from bits.environment import Environment, open_environment
from engine.knobs import feed_knobs, pack_knobs
from tests.engine.one_step import ATTACK, EPS, CountPasses, cnn, knobs, make_batch, make_step, without_norm


@pytest.fixture
def env() -> Environment:
    return open_environment("cpu")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_knobs_say_how_many_steps_an_attack_takes(
    steps: int, env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And graphs are cut as for the recipe's own number, so that one step more is a graph that exists."""
    cuts: list[str] = []
    monkeypatch.setattr(type(env), "cut", lambda self: cuts.append("cut"))
    model = cnn()
    step = make_step(env, model, attack=ATTACK.model_copy(update={"steps": 3}))
    unit = sum(isinstance(module, nn.Conv2d) for module in model.modules()) * 8
    cuts.clear()
    given = pack_knobs(lr=0.1, eps=EPS, step_size=EPS, step=0, attack_steps=steps)
    with CountPasses() as passes:
        assert step(make_batch(), feed_knobs(env, given))
    assert passes.counts["input"] == steps * unit
    assert passes.counts["forward"] == (1 + steps) * unit
    assert len(cuts) == 1 + steps + 1, "behind the start, each step, and the update"


def test_one_step_for_ever_is_not_cut(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[str] = []
    monkeypatch.setattr(type(env), "cut", lambda self: cuts.append("cut"))
    step = make_step(env, cnn(), attack=ATTACK)
    cuts.clear()
    step(make_batch(), pack_knobs(lr=0.1, eps=EPS, step_size=EPS, step=0, attack_steps=1))
    assert len(cuts) == 1


@pytest.mark.parametrize("ema_warmup", [False, True])
def test_the_average_takes_its_weight_from_the_knobs(ema_warmup: bool, env: Environment) -> None:
    model = without_norm()
    step = make_step(env, model, ema_warmup=ema_warmup)
    step.state.ema = Ema(model, 0.9)
    start = model[0].weight.detach().clone()
    step(make_batch(), pack_knobs(lr=0.1, eps=0.0, step_size=0.0, step=0, ema_weight=0.25))
    share = 0.25 if ema_warmup else 0.1
    wanted = start + share * (model[0].weight.detach() - start)
    found: Any = step.state.ema.module
    torch.testing.assert_close(found[0].weight, wanted)
    assert not torch.equal(start, model[0].weight)


def test_every_micro_step_but_the_last_is_accumulating(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment then leaves out is shown by tests/bits/conformance_cases.py on two processes."""
    inside: list[int] = []

    @contextmanager
    def accumulating(self: Environment, wrapped: nn.Module) -> Iterator[None]:
        inside.append(number)
        yield

    monkeypatch.setattr(type(env), "accumulating", accumulating)
    step = make_step(env, without_norm(), accumulate=3)
    ended = []
    for number in range(6):
        ended.append(step(make_batch(seed=number), knobs()))
    assert inside == [0, 1, 3, 4]
    assert ended == [False, False, True] * 2
