"""GhostBatchNorm2d against loops over groups and copies, its order of copies, and attacks in between."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.batchnorm import GroupBatchNorm2d
from models.convert import set_norm
from models.ghost import GhostBatchNorm2d, attacking
from models.norm import check_ghost, parse_norm_stats, set_norm_stats

C, R, BATCH = 5, 3, 12


def make_input(step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(BATCH, C, 4, 3, generator=generator)
    # every image and channel off centre by its own amount, so that a wrong grouping cannot pass
    return image + 3.0 * torch.randn(BATCH, C, 1, 1, generator=generator)


def randomise(norm: GhostBatchNorm2d) -> GhostBatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.randn(C, generator=generator))
        norm.bias.copy_(torch.randn(C, generator=generator))
        norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return norm


def ghost(**settings: Any) -> GhostBatchNorm2d:
    return randomise(GhostBatchNorm2d(C, groups=R, **settings))


def members(grouping: str) -> list[list[int]]:
    """The images of each group, written out."""
    if grouping == "contiguous":
        return [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    return [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


class Loop:
    """The definition: one nn.BatchNorm2d per group and copy, taken in turns, with one weight and bias."""

    def __init__(self, norm: GhostBatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.members = members(norm.grouping)
        self.weight = norm.weight.detach().clone().requires_grad_()
        self.bias = norm.bias.detach().clone().requires_grad_()
        self.copies = norm.copies or 1
        shape = (self.copies, R, C)
        self.mean = norm.running_mean.clone().reshape(shape)
        self.var = norm.running_var.clone().reshape(shape)
        self.turn = 0

    def __call__(self, x: Tensor, *, training: bool = True) -> Tensor:
        out: list[Tensor] = [torch.empty(0)] * BATCH
        chosen = self.turn % self.copies
        for g, group in enumerate(self.members):
            normed = F.batch_norm(
                x[group], self.mean[chosen, g], self.var[chosen, g], self.weight, self.bias, training
            )
            for row, image in zip(group, normed, strict=True):
                out[row] = image
        self.turn += training
        return torch.stack(out)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((output * weight).sum(), inputs)


def assert_same_statistics(norm: GhostBatchNorm2d, loop: Loop) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    shape = (loop.copies, R, C)
    torch.testing.assert_close(norm.running_mean.reshape(shape), loop.mean)
    torch.testing.assert_close(norm.running_var.reshape(shape), loop.var)


@pytest.mark.parametrize("grouping", ["contiguous", "modulo"])
@pytest.mark.parametrize("copies", [None, 1, 4])
def test_training_equals_the_loop_over_groups_and_copies(grouping: str, copies: int | None) -> None:
    norm = ghost(grouping=grouping, copies=copies).train()
    loop = Loop(norm)
    for step in range(6):
        x, same = (make_input(step).requires_grad_() for _ in range(2))
        ours, theirs = norm(x), loop(same)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for mine, wanted in zip(
            gradients(ours, x, norm.weight, norm.bias),
            gradients(theirs, same, loop.weight, loop.bias),
            strict=True,
        ):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
        assert_same_statistics(norm, loop)
    assert norm.num_batches_tracked == 6


@pytest.mark.parametrize("copies", [None, 2])
def test_evaluation_is_by_the_first_group_of_the_first_copy_or_the_average(copies: int | None) -> None:
    norm = ghost(copies=copies).train()
    for step in range(3):
        norm(make_input(step))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    means, variances = norm.running_mean.reshape(-1, R, C)[0], norm.running_var.reshape(-1, R, C)[0]
    x = make_input()[:7]  # splits into no groups
    affine = (norm.weight, norm.bias)
    norm.eval()
    assert torch.equal(norm(x), F.batch_norm(x, means[0], variances[0], *affine))
    norm.evaluation = "average"
    torch.testing.assert_close(norm(x), F.batch_norm(x, means.mean(0), variances.mean(0), *affine))
    assert norm.num_batches_tracked == 3


def test_the_average_over_groups_is_what_the_single_running_statistic_keeps() -> None:
    norm, single = GhostBatchNorm2d(C, groups=R), GroupBatchNorm2d(C, num_groups=R)
    for step in range(4):
        torch.testing.assert_close(norm(make_input(step)), single(make_input(step)))
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean.view(R, C).mean(0), single.running_mean)


def test_modulo_groups_are_contiguous_groups_of_the_permuted_batch() -> None:
    contiguous, modulo = ghost(), ghost(grouping="modulo")
    order = [image for group in members("modulo") for image in group]
    x = make_input()
    assert torch.equal(contiguous(x[order]), modulo(x)[order])
    torch.testing.assert_close(contiguous.running_mean, modulo.running_mean)


@pytest.mark.parametrize("grouping", ["contiguous", "modulo"])
def test_groups_stay_inside_a_devices_slice_of_the_batch(grouping: str) -> None:
    """Two devices that share the tensor do what two processes of a batch of 6 do, running statistics averaged."""
    together = ghost(grouping=grouping, num_devices=2)
    apart = [ghost(grouping=grouping) for _ in range(2)]
    x = make_input()
    halves = [norm(half) for norm, half in zip(apart, x.chunk(2), strict=True)]
    torch.testing.assert_close(together(x), torch.cat(halves))
    for name in ("running_mean", "running_var"):
        first, second = (getattr(norm, name) for norm in apart)
        torch.testing.assert_close(getattr(together, name), (first + second) / 2)


def changed_copies(norm: GhostBatchNorm2d, before: Tensor) -> list[bool]:
    assert norm.running_mean is not None
    return (norm.running_mean != before).any(1).tolist()


def test_micro_batch_i_uses_copy_i_modulo_f_also_after_resume_and_around_attacks() -> None:
    norm = ghost(copies=3).train()
    order: list[int] = []
    for step in range(7):
        if step == 4:  # resume into a fresh module, in the middle of an update
            fresh = GhostBatchNorm2d(C, groups=R, copies=3)
            fresh.load_state_dict(norm.state_dict())
            norm = fresh.train()
        assert norm.running_mean is not None
        before = norm.running_mean.clone()
        norm.eval()(make_input(step))
        with attacking(norm):
            norm.eval()(make_input(step))
            norm.train()(make_input(step))  # an attack in train mode
        assert not any(changed_copies(norm, before))
        norm.train()(make_input(step))
        changed = changed_copies(norm, before)
        assert sum(changed) == 1
        order.append(changed.index(True))
    assert order == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_checkpointing_repeats_is_no_micro_batch(use_reentrant: bool) -> None:
    norm, plain = ghost(copies=2).train(), ghost(copies=2).train()
    for step in range(3):
        x, same = (make_input(step).requires_grad_() for _ in range(2))
        checkpoint(norm, x, use_reentrant=use_reentrant).square().sum().backward()
        plain(same).square().sum().backward()
        torch.testing.assert_close(x.grad, same.grad)
    assert norm.num_batches_tracked == 3
    assert torch.equal(norm.state_dict()["running_mean"], plain.state_dict()["running_mean"])


@pytest.mark.parametrize("grouping", ["contiguous", "modulo"])
def test_an_attack_uses_its_groups_statistics_in_the_coming_copy(grouping: str) -> None:
    norm = ghost(grouping=grouping, copies=4).train()
    for step in range(6):
        norm(make_input(step))
    loop = Loop(norm)
    loop.turn = 6
    norm.eval()
    x, same = (make_input(7).requires_grad_() for _ in range(2))
    with attacking(norm):
        ours = norm(x)
    theirs = loop(same, training=False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, x), gradients(theirs, same))
    with attacking(norm, by_group=False):
        evaluated = norm(x)
    assert torch.equal(evaluated, norm(x))
    assert not torch.equal(evaluated, ours)
    assert norm.under_attack == "no"


def test_attacking_ends_where_it_raises_and_nests() -> None:
    norm = ghost().eval()
    short = make_input()[:7]

    def attack() -> None:
        with attacking(norm), attacking(norm, by_group=False):
            norm(short)
            with attacking(norm):
                norm(short)

    with pytest.raises(
        ValueError, match="ghost norm of 3 groups cannot split 7 images; try a batch of 6 or 9"
    ):
        attack()
    assert norm.under_attack == "no"


@pytest.mark.parametrize(
    ("batch", "near"), [(7, "try a batch of 6 or 9"), (2, "try a batch of 3"), (0, "try a batch of 3")]
)
def test_a_batch_that_does_not_split(batch: int, near: str) -> None:
    with pytest.raises(ValueError, match=near) as caught:
        ghost().train()(make_input()[:batch])
    assert "\n" not in str(caught.value)


def test_one_value_per_group_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ghost().train()(torch.rand(R, C, 1, 1))


@pytest.mark.parametrize("settings", [{"groups": 0}, {"groups": 2, "copies": 0}])
def test_impossible_numbers(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        GhostBatchNorm2d(C, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("copies", [None, 2])
def test_cumulative_momentum_averages_each_copys_updates(copies: int | None) -> None:
    norm = GhostBatchNorm2d(C, groups=R, copies=copies, momentum=None)
    for step in range(4):
        norm(make_input(step))
    taken = [0, 2] if copies else [0, 1, 2, 3]  # by copy 0
    wanted = torch.stack([make_input(step)[:4].mean((0, 2, 3)) for step in taken]).mean(0)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean.reshape(-1, R * C)[0, :C], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copies", [None, 2])
def test_statistics_are_float32_under_autocast(copies: int | None) -> None:
    norm = GhostBatchNorm2d(C, groups=R, copies=copies)
    reference = copy.deepcopy(norm)
    x = (make_input() + 100.0).bfloat16()  # bf16 statistics would be off by half a unit here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = norm(x)
        with attacking(norm.eval()):
            attacked = norm(x)
        evaluated = norm(x)
    assert {output.dtype, attacked.dtype, evaluated.dtype} == {torch.bfloat16}
    torch.testing.assert_close(output.float(), reference(x.float()), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_without_running_statistics() -> None:
    norm = GhostBatchNorm2d(C, groups=R, affine=False, track_running_stats=False)
    assert not norm.state_dict()
    assert norm.train()(make_input()).shape == norm.eval()(make_input()).shape


def test_the_grammar_of_recipes() -> None:
    parsed = parse_norm_stats("groups:2x8:modulo:average")
    assert (parsed.groups, parsed.copies, parsed.grouping, parsed.evaluation) == (2, 8, "modulo", "average")
    parsed = parse_norm_stats("groups:4")
    assert (parsed.groups, parsed.copies, parsed.grouping, parsed.evaluation) == (
        4,
        None,
        "contiguous",
        "first",
    )
    norm = set_norm_stats(nn.BatchNorm2d(C), "groups:2x8:modulo", num_devices=2)
    assert isinstance(norm, GhostBatchNorm2d)
    assert (norm.groups, norm.copies, norm.grouping, norm.num_devices) == (2, 8, "modulo", 2)
    check_ghost("groups:4x4", 256)
    with pytest.raises(ValueError, match="do not split into 4 groups; try a batch of 252 or 256"):
        check_ghost("groups:4x4", 254)


@pytest.mark.parametrize(
    "text", ["groups", "groups:0", "groups:4x0", "groups:4:modula", "groups:4x", "groups:2:average:modulo"]
)
def test_bad_grammar(text: str) -> None:
    with pytest.raises(ValueError, match="unknown norm_stats"):
        parse_norm_stats(text)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=4, zero_init_last=False)


def steps(model: nn.Module, *, count: int) -> Iterator[Tensor]:
    for step in range(count):
        image = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        yield model(image)


def test_a_resnet_trains_and_its_groups_do_not_see_each_other() -> None:
    model = set_norm(resnet(), "ghost", groups=3, copies=2).train()
    for logits in steps(model, count=3):
        logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    image = torch.rand(6, 3, 64, 64)
    changed = image.clone()
    changed[2:4] = 0.5
    same = torch.isclose(model(image), model(changed), rtol=1e-4, atol=1e-5).all(1)
    assert same.tolist() == [True, True, False, False, True, True]
