"""TrainState: everything that is saved comes back, and what is saved does not change behind one's back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bits.checkpoint import load_checkpoint, save_checkpoint
from bits.ema import Ema
from bits.state import TrainState, to_cpu


def train(state: TrainState, updates: int) -> None:
    for _ in range(updates):
        image = torch.randn(8, 3, generator=torch.Generator().manual_seed(state.step))
        state.model(image).square().mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not None:
            state.ema.update_(state.model)
        state.step += 1
        state.consumed += 8


def fresh(*, ema: bool = True) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return TrainState(model=model, optimizer=optimizer, ema=Ema(model, 0.9) if ema else None)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [(key, flat(entry)) for key, entry in value.items()]
    if isinstance(value, torch.Tensor):
        return [value.dtype, value.tolist()]
    return [flat(entry) for entry in value] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("ema", [True, False])
def test_goes_on_as_if_never_stopped(ema: bool, tmp_path: Path) -> None:
    straight, stopped, resumed = fresh(ema=ema), fresh(ema=ema), fresh(ema=ema)
    train(straight, 5)
    train(stopped, 3)
    stopped.epoch = straight.epoch = 2
    path = save_checkpoint(tmp_path, 3, stopped.state_dict(), facts={}).path
    resumed.load_state_dict(load_checkpoint(path))
    assert (resumed.step, resumed.epoch, resumed.consumed) == (3, 2, 24)
    assert flat(resumed.state_dict()) == flat(stopped.state_dict())
    train(resumed, 2)
    assert flat(resumed.state_dict()) == flat(straight.state_dict())


def test_saved_state_does_not_follow_the_live_one() -> None:
    state = fresh()
    train(state, 1)
    saved = state.state_dict()
    before = copy.deepcopy(flat(saved))
    train(state, 1)
    assert flat(saved) == before
    assert flat(saved) != flat(state.state_dict())


def test_loading_keeps_the_live_tensors() -> None:
    """The optimizer, the average and a DDP wrapper hold the same Parameter objects."""
    state, other = fresh(), fresh()
    train(other, 2)
    held = [id(parameter) for parameter in state.model.parameters()]
    state.load_state_dict(other.state_dict())
    assert [id(parameter) for parameter in state.model.parameters()] == held


def test_to_cpu_copies_nested_tensors() -> None:
    tensor = torch.ones(2, requires_grad=True)
    found = to_cpu({"a": [tensor, {"b": (tensor, 3)}], "c": "text"})
    with torch.no_grad():
        tensor.zero_()
    assert found["a"][0].tolist() == found["a"][1]["b"][0].tolist() == [1.0, 1.0]
    assert not found["a"][0].requires_grad
    assert isinstance(found["a"][1]["b"], tuple)
    assert (found["a"][1]["b"][1], found["c"]) == (3, "text")


def test_ema_is_the_closed_form_and_copies_counters() -> None:
    model = nn.BatchNorm1d(1)
    ema = Ema(model, 0.5)
    wanted = 1.0
    for value in (3.0, -1.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.num_batches_tracked += 1
        ema.update_(model)
        wanted = 0.5 * wanted + 0.5 * value
    assert ema.module.weight.item() == wanted
    assert ema.module.num_batches_tracked.item() == 3
    assert not ema.module.training
    assert not ema.module.weight.requires_grad
    assert model.weight.item() == 4.0, "the live weights are never written"


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 2.0])
def test_ema_decay_outside_its_range(decay: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Ema(nn.Linear(1, 1), decay)
