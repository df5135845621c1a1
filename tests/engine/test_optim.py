"""Our AdamW and SGD against torch's own, step by step."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.optim import SGD, AdamW, TensorLrOptimizer
from engine.param_groups import parameter_groups

NUM_STEPS = 30


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def lr_of(step: int) -> float:
    """A warm-up from 0 and a decay: the rate is another one at every step."""
    return 0.1 * min(step / 5, 1.0) * (1 - step / (2 * NUM_STEPS))


def fill_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 5 - 3)


def assert_follows(
    ours: TensorLrOptimizer, mine: nn.Module, theirs: torch.optim.Optimizer, twin: nn.Module
) -> None:
    path = 0.0  # what AdamW may have moved a weight by now
    for step in range(NUM_STEPS):
        fill_gradients(mine, step)
        fill_gradients(twin, step)
        ours.set_lr(torch.tensor(lr_of(step)))
        for group in theirs.param_groups:
            group["lr"] = lr_of(step)
        ours.step()
        theirs.step()
        path += lr_of(step)
        # float32 knows 1 - 0.999 to five digits, where torch computes AdamW's correction in float64.
        for p, q in zip(mine.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-5 * path + 1e-7, msg=f"step {step}")
    assert not torch.allclose(twin[0].weight, model()[0].weight), "nothing moved"


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.95)])
def test_adamw_is_torchs(weight_decay: float, betas: tuple[float, float]) -> None:
    mine, twin = model(), model()
    ours = AdamW(
        parameter_groups(mine, weight_decay=weight_decay), betas=betas, eps=1e-8, weight_decay=weight_decay
    )
    groups = parameter_groups(twin, weight_decay=weight_decay)
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=1e-8, weight_decay=weight_decay)
    assert_follows(ours, mine, theirs, twin)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs(weight_decay: float, momentum: float, nesterov: bool) -> None:
    mine, twin = model(), model()
    kind: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    ours = SGD(parameter_groups(mine, weight_decay=weight_decay), **kind)
    theirs = torch.optim.SGD(parameter_groups(twin, weight_decay=weight_decay), lr=1.0, **kind)
    assert_follows(ours, mine, theirs, twin)


def make(kind: str, module: nn.Module) -> TensorLrOptimizer:
    groups = parameter_groups(module, weight_decay=0.1)
    if kind == "adamw":
        return AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    return SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_lr_zero_moves_nothing_also_without_gradient(kind: str) -> None:
    """torch's capturable AdamW turns a zero gradient at lr 0 into nan on XLA."""
    module = model()
    before = copy.deepcopy(module.state_dict())
    optimizer = make(kind, module)
    for step in range(3):
        fill_gradients(module, step)
        module[0].weight.grad = torch.zeros_like(module[0].weight)
        optimizer.set_lr(torch.tensor(0.0))
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    optimizer.set_lr(torch.tensor(0.1))
    module[0].weight.grad = torch.zeros_like(module[0].weight)
    optimizer.step()
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_state_dict_round_trip_goes_on_with_the_same_bits(kind: str) -> None:
    straight = model()
    one = make(kind, straight)
    steps(one, straight, range(8))
    first = model()
    half = make(kind, first)
    steps(half, first, range(4))
    second = model()
    second.load_state_dict(first.state_dict())
    other = make(kind, second)
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    steps(other, second, range(4, 8))
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def steps(optimizer: TensorLrOptimizer, module: nn.Module, numbers: range) -> None:
    for step in numbers:
        fill_gradients(module, step)
        optimizer.set_lr(torch.tensor(lr_of(step)))
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_rate_is_read_from_the_tensor_and_never_on_the_host(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensor: Tensor) -> Any:
        raise AssertionError("a host read")

    module = model()
    optimizer = make(kind, module)
    knobs = torch.tensor([0.0, 0.1])
    with monkeypatch.context() as patch:
        for name in ("item", "__float__", "__bool__", "tolist"):
            patch.setattr(Tensor, name, refuse)
        for step in range(3):
            fill_gradients(module, step)
            optimizer.set_lr(knobs[1])
            optimizer.step()
    assert not torch.equal(module[0].weight, model()[0].weight)


def test_lr_scale_of_a_group_multiplies() -> None:
    slow, fast = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [slow], "lr_scale": 0.25}, {"params": [fast]}]
    optimizer = SGD(groups, momentum=0.0, nesterov=False, weight_decay=0.0)
    slow.grad = fast.grad = torch.ones(2)
    optimizer.set_lr(torch.tensor(0.5))
    optimizer.step()
    assert (slow.tolist(), fast.tolist()) == ([-0.125] * 2, [-0.5] * 2)


def test_parameters_without_gradient_stay() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([used, unused], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)
    used.grad = torch.ones(2)
    optimizer.set_lr(torch.tensor(0.1))
    optimizer.step()
    assert unused.tolist() == [1.0, 1.0]
    assert used[0] < 1.0


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match=r"nesterov.*momentum"):
        SGD([nn.Parameter(torch.zeros(1))], momentum=0.0, nesterov=True, weight_decay=0.0)
