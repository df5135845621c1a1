"""Split norm: which branch runs, what each keeps, and the switch."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from models.convert import set_norm
from models.ghost import GhostBatchNorm2d
from models.norm import set_norm_stats
from models.split import SplitNorm2d, branch, set_branch

C = 4


def make_input(step: int = 0) -> Tensor:
    return torch.randn(8, C, 3, 3, generator=torch.Generator().manual_seed(step)) * 2 + step


def split(**settings: Any) -> SplitNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    found = set_norm(norm, "split", **settings)
    assert isinstance(found, SplitNorm2d)
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_each_branch_is_a_batchnorm_of_its_own_images(shared: bool) -> None:
    norm = split(shared_affine=shared).train()
    clean, adversarial = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
    for reference in (clean, adversarial):
        reference.weight, reference.bias = norm.main.weight, norm.main.bias
    for step in range(3):
        torch.testing.assert_close(norm(make_input(step)), clean(make_input(step)))
        with branch(norm, "adversarial"):
            torch.testing.assert_close(norm(make_input(step + 9)), adversarial(make_input(step + 9)))
    torch.testing.assert_close(norm.main.running_var, clean.running_var)
    torch.testing.assert_close(norm.auxiliary.running_var, adversarial.running_var)
    norm.eval(), clean.eval(), adversarial.eval()
    torch.testing.assert_close(norm(make_input()), clean(make_input()))  # evaluation is by main
    with branch(norm, "adversarial"):  # where an attack may run
        torch.testing.assert_close(norm(make_input()), adversarial(make_input()))


@pytest.mark.parametrize("shared", [False, True])
def test_affine_is_shared_or_separate(shared: bool) -> None:
    norm = split(shared_affine=shared).train()
    with branch(norm, "adversarial"):
        (norm(make_input()) * make_input(1)).sum().backward()
    assert len(list(norm.parameters())) == (2 if shared else 4)
    owner = norm.main if shared else norm.auxiliary
    assert owner.weight.grad is not None
    assert owner.weight.grad.abs().min() > 0
    assert shared or norm.main.weight.grad is None


def test_halves_are_two_forwards_in_one() -> None:
    norm, two = split().train(), split().train()
    x = torch.cat((make_input(0), make_input(5)))
    with branch(norm, "halves"):
        together = norm(x)
    clean = two(x[:8])
    with branch(two, "adversarial"):
        adversarial = two(x[8:])
    assert torch.equal(together, torch.cat((clean, adversarial)))
    for name, value in two.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    set_branch(norm, "halves")
    with pytest.raises(ValueError, match="in halves cannot split 7 images"):
        norm(x[:7])


def test_the_switch_comes_back_also_after_an_error() -> None:
    model = nn.Sequential(split(), split())
    set_branch(model[0], "halves")

    def fail() -> None:
        with branch(model, "adversarial"):
            assert [norm.branch for norm in model] == ["adversarial"] * 2
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [norm.branch for norm in model] == ["halves", "clean"]


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="Linear has no split norm; convert it first"):
        set_branch(nn.Linear(1, 1), "clean")
    with pytest.raises(ValueError, match="unknown branch 'dirty'; use clean, adversarial, halves"):
        set_branch(split(), "dirty")  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_activations_of_timms_norms_and_bf16(shared: bool) -> None:
    torch.manual_seed(0)
    plain = BatchNormAct2d(C)
    norm = set_norm(BatchNormAct2d(C), "split", shared_affine=shared)
    for name in ("clean", "adversarial"):
        with branch(norm, name):  # type: ignore[arg-type]
            assert torch.equal(norm(make_input()), plain.train()(make_input()))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert norm(make_input().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["ghost", "norm_stats"])
@pytest.mark.parametrize("shared", [False, True])
def test_both_norms_can_be_ghost_norms(kind: str, shared: bool) -> None:
    model = set_norm(timm.create_model("test_resnet", num_classes=4), "split", shared_affine=shared)
    if kind == "ghost":
        set_norm(model, "ghost", groups=2)
        assert {type(n.auxiliary) for n in model.modules() if isinstance(n, SplitNorm2d)} == {
            GhostBatchNorm2d
        }
    else:
        set_norm_stats(model, "ghost:4")
    with branch(model.train(), "adversarial"):
        logits = model(torch.rand(8, 3, 32, 32))
    F.cross_entropy(logits, torch.zeros(8, dtype=torch.int64)).backward()
    assert logits.isfinite().all()
    auxiliary = [name for name in model.state_dict() if ".auxiliary." in name]
    assert (".weight" in str(auxiliary)) is not shared
