"""GroupBatchNorm2d against a loop over groups; GlobalBatchNorm2d on two threads against one whole batch."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import GlobalBatchNorm2d, GroupBatchNorm2d

C, GROUP, BATCH = 5, 3, 12


def make_input() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(BATCH, C, 4, 3, generator=generator)
    # every image and channel off centre by its own amount, so that a wrong grouping cannot pass
    return image + 3.0 * torch.randn(BATCH, C, 1, 1, generator=generator)


def randomise(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(C, generator=generator))
        norm.bias.copy_(torch.randn(C, generator=generator))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(torch.randn(C, generator=generator))
        norm.running_var.copy_(torch.rand(C, generator=generator) + 0.5)
    return norm


def loop_over_groups(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, group by group: output, average of the means, average of the unbiased variances."""
    groups = x.split(GROUP)
    normed = [F.batch_norm(g, None, None, norm.weight, norm.bias, True, 0.0, norm.eps) for g in groups]
    means = torch.stack([g.mean((0, 2, 3)) for g in groups]).mean(0)
    variances = torch.stack([g.transpose(0, 1).flatten(1).var(1, unbiased=True) for g in groups]).mean(0)
    return torch.cat(normed), means, variances


def backward(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((output * weight).sum(), inputs)


@pytest.mark.parametrize("by", [{"group_size": GROUP}, {"num_groups": BATCH // GROUP}])
def test_group_training_equals_the_loop(by: dict[str, int]) -> None:
    norm, reference = randomise(GroupBatchNorm2d(C, **by)), randomise(nn.BatchNorm2d(C))
    x = make_input().requires_grad_(True)
    old = {name: value.clone() for name, value in reference.named_buffers()}
    expected, means, variances = loop_over_groups(reference, x)
    output = norm.train()(x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, 0.9 * old["running_mean"] + 0.1 * means.detach())
    torch.testing.assert_close(norm.running_var, 0.9 * old["running_var"] + 0.1 * variances.detach())
    assert norm.num_batches_tracked == 1
    for ours, theirs in zip(
        backward(output, x, norm.weight, norm.bias),
        backward(expected, x, reference.weight, reference.bias),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_groups_are_contiguous_and_separate() -> None:
    norm = GroupBatchNorm2d(C, group_size=GROUP).train()
    x = make_input()
    changed = x.clone()
    changed[GROUP : 2 * GROUP] += torch.randn(GROUP, C, 4, 3, generator=torch.Generator().manual_seed(5))
    before, after = norm(x), norm(changed)
    same = (before == after).flatten(1).all(1)
    assert same.tolist() == [True] * GROUP + [False] * GROUP + [True] * (BATCH - 2 * GROUP)


def test_group_of_the_whole_batch_equals_batchnorm() -> None:
    norm, reference = randomise(GroupBatchNorm2d(C, group_size=BATCH)), randomise(nn.BatchNorm2d(C))
    for _ in range(3):
        torch.testing.assert_close(norm(make_input()), reference(make_input()), rtol=1e-5, atol=1e-5)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], value)


def test_eval_mode_is_batchnorm_and_takes_any_batch() -> None:
    norm, reference = randomise(GroupBatchNorm2d(C, group_size=GROUP)), randomise(nn.BatchNorm2d(C))
    x = make_input()[:4]  # not divisible by the group
    assert torch.equal(norm.eval()(x), reference.eval()(x))
    assert norm.num_batches_tracked == 0


def test_cumulative_momentum() -> None:
    norm, reference = (
        GroupBatchNorm2d(C, group_size=BATCH, momentum=None),
        nn.BatchNorm2d(C, momentum=None),
    )
    for scale in (1.0, 2.0, 5.0):
        norm(make_input() * scale), reference(make_input() * scale)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_state_dict_is_batchnorms() -> None:
    norm, reference = GroupBatchNorm2d(C, group_size=GROUP), randomise(nn.BatchNorm2d(C))
    norm.load_state_dict(reference.state_dict(), strict=True)
    assert list(norm.state_dict()) == list(reference.state_dict())


def test_statistics_are_float32_under_autocast() -> None:
    norm, reference = GroupBatchNorm2d(C, group_size=GROUP), GroupBatchNorm2d(C, group_size=GROUP)
    x = (make_input() + 100.0).bfloat16()  # bf16 statistics would be off by half a unit here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = norm(x)
    assert output.dtype == torch.bfloat16
    expected = reference(x.float())
    torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


@pytest.mark.parametrize(
    ("by", "batch"), [({"group_size": 5}, 12), ({"group_size": 16}, 12), ({"num_groups": 5}, 12)]
)
def test_a_batch_that_does_not_split(by: dict[str, int], batch: int) -> None:
    with pytest.raises(ValueError, match="cannot split 12 images"):
        GroupBatchNorm2d(C, **by)(torch.rand(batch, C, 2, 2))


def test_one_value_per_channel_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        GroupBatchNorm2d(C, group_size=1)(torch.rand(4, C, 1, 1))


class Rendezvous:
    """A sum over threads, each standing for a process; every thread gets the same tensor."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.slots: list[Tensor] = [torch.empty(0)] * world_size

    def sum(self, rank: int, value: Tensor) -> Tensor:
        self.slots[rank] = value
        self.barrier.wait()
        total = torch.stack(self.slots).sum(0)
        self.barrier.wait()
        return total


class SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rendezvous: Rendezvous, rank: int) -> Tensor:
        ctx.rendezvous, ctx.rank = rendezvous, rank
        return rendezvous.sum(rank, value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.rendezvous.sum(ctx.rank, gradient), None, None


def test_global_on_two_processes_equals_batchnorm_on_the_whole_batch() -> None:
    x = make_input()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    reference = randomise(nn.BatchNorm2d(C))
    whole = x.clone().requires_grad_(True)
    expected = reference(whole)
    wanted = torch.autograd.grad((expected * weight).sum(), (whole, reference.weight, reference.bias))

    rendezvous = Rendezvous(2)
    results: dict[int, tuple[Tensor, tuple[Tensor, ...], GlobalBatchNorm2d]] = {}

    def process(rank: int) -> None:
        def reduce(value: Tensor) -> Tensor:
            total: Tensor = SumOverProcesses.apply(value, rendezvous, rank)  # type: ignore[no-untyped-call]
            return total

        norm = GlobalBatchNorm2d(C, reduce=reduce, world_size=2)
        randomise(norm)
        rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        mine = x[rows].clone().requires_grad_(True)
        output = norm.train()(mine)
        gradients = torch.autograd.grad((output * weight[rows]).sum(), (mine, norm.weight, norm.bias))
        results[rank] = (output.detach(), gradients, norm)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(results) == [0, 1]
    torch.testing.assert_close(
        torch.cat([results[r][0] for r in (0, 1)]), expected.detach(), rtol=1e-5, atol=1e-5
    )
    image_gradient = torch.cat([results[r][1][0] for r in (0, 1)])
    torch.testing.assert_close(image_gradient, wanted[0], rtol=1e-4, atol=1e-5)
    for i in (1, 2):  # weight and bias: every process holds its share of the sum
        torch.testing.assert_close(results[0][1][i] + results[1][1][i], wanted[i], rtol=1e-4, atol=1e-5)
    for rank in (0, 1):
        torch.testing.assert_close(results[rank][2].running_mean, reference.running_mean)
        torch.testing.assert_close(results[rank][2].running_var, reference.running_var)


def test_two_passes_keep_a_small_variance_beside_a_large_mean() -> None:
    norm = GlobalBatchNorm2d(
        C, reduce=lambda total: 2 * total, world_size=2
    )  # two processes with equal batches
    x = make_input() * 1e-2 + 100.0
    output = norm.train()(x)
    expected = F.batch_norm(x.double(), None, None, training=True)
    torch.testing.assert_close(output.double(), expected, rtol=1e-2, atol=1e-2)
