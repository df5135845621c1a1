"""Blocks that run again in the backward pass: the same numbers, less memory, whatever was switched meanwhile."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine.training_attack import frozen_statistics
from models.ghost import attacking
from models.pixel import PixelModel
from models.recompute import blocks, recompute_blocks
from models.registry import create_model
from models.split import branch
from robust.gradient import input_gradient

RESNET: dict[str, Any] = {"layers": (1, 1, 2, 1), "channels": (8, 8, 16, 16), "zero_init_last": False}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # with the number of blocks
    "resnet18": ("resnet18", RESNET, 5),
    "resnet50_gelu": ("resnet50_gelu", RESNET, 5),
    "deit": (
        "deit_mini_patch16_224",
        {"embed_dim": 64, "num_heads": 2, "depth": 3, "proj_drop_rate": 0.2},
        3,
    ),
    "two_heads": ("deit_mini_distilled_patch16_224", {"embed_dim": 64, "num_heads": 2, "depth": 2}, 2),
    "hybrid": ("hybrid_deit_mini", {"embed_dim": 64, "num_heads": 2, "depth": 2}, 2),
    "robust_resnet": ("robust_resnet_dw_small", {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}, 5),
    "convnext": (
        "convnext_tiny",
        {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)},
        8,
    ),  # 3 of them halve the map
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 1), "embed_dim": 16, "num_heads": (1, 2)}, 4),
    "efficientnet": ("efficientnet_b0", {}, 17),
}
IMAGE, LABEL = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(4)


def torch_checkpoint(module: nn.Module, *inputs: Tensor) -> Tensor:
    out: Tensor = checkpoint(module, *inputs, use_reentrant=False)
    return out


def build(name: str, args: dict[str, Any], **extra: Any) -> PixelModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 5, "image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    return create_model(name, **settings, **args, **extra).train()


def pair(name: str, args: dict[str, Any], **extra: Any) -> tuple[PixelModel, PixelModel]:
    """The same model twice, the second one recomputing."""
    plain = build(name, args, **extra)
    saving = copy.deepcopy(plain)
    recompute_blocks(saving, torch_checkpoint)
    return plain, saving


def update(
    model: nn.Module, around: Callable[[nn.Module], AbstractContextManager[None]] | None = None
) -> list[Tensor]:
    """Loss, gradients, buffers, the input gradient of an attack, and what the generator gives behind all that."""
    torch.manual_seed(7)
    with nullcontext() if around is None else around(model):
        loss = F.cross_entropy(model(IMAGE), LABEL)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [torch.zeros(()) if p.grad is None else p.grad for p in model.parameters()]
    model.eval()
    attack = input_gradient(model, IMAGE, lambda logits: F.cross_entropy(logits, LABEL, reduction="sum"))
    model.train()
    return [loss.detach(), *gradients, *model.buffers(), attack, torch.rand(1)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"tensor {number} of {len(ours)}: {(a - b).abs().max()}"


def saved_bytes(model: nn.Module, *, attack: bool = False) -> int:
    """Of the tensors that a forward pass keeps for the backward pass, weights apart, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(IMAGE[:2].clone().requires_grad_(attack))
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_update_and_the_same_attack(kind: str) -> None:
    name, args, count = MODELS[kind]
    drop_path = {} if kind == "hybrid" else {"drop_path": 0.3}
    plain, saving = pair(name, args, **drop_path)
    assert len(blocks(plain)) == len(blocks(saving)) == count
    assert list(plain.state_dict()) == list(saving.state_dict())
    assert_equal(update(saving), update(plain))


SHARES = {  # of what a forward pass keeps without: what is between the blocks, and the stem's
    "resnet18": 0.6,
    "resnet50_gelu": 0.3,
    "deit_mini_patch16_224": 0.1,
    "robust_resnet_dw_small": 0.55,  # its tensors between blocks are the wide ones
    "robust_resnet_up_inverted_dw_small": 0.2,
    "convnext_tiny": 0.15,
    "hybrid_deit_mini": 0.7,  # the ResNet in front has no blocks here
}


@pytest.mark.parametrize("name", SHARES)
def test_less_is_kept(name: str) -> None:
    plain, saving = pair(name, {})
    for attack in (False, True):
        before, after = saved_bytes(plain, attack=attack), saved_bytes(saving, attack=attack)
        assert after < SHARES[name] * before, f"{after} bytes kept, {before} without"


@pytest.mark.parametrize("norm_stats", ["ghost:2", "groups:2", "groups:2x3:modulo"])
def test_statistics_of_groups_move_once(norm_stats: str) -> None:
    assert_equal(*(update(model) for model in reversed(pair("resnet18", RESNET, norm_stats=norm_stats))))


def test_what_was_switched_meanwhile_is_as_it_was_in_the_second_run() -> None:
    def frozen(model: nn.Module) -> AbstractContextManager[None]:
        return frozen_statistics(model)

    def halves(model: nn.Module) -> AbstractContextManager[None]:
        return branch(model, "halves")

    assert_equal(*(update(model, frozen) for model in reversed(pair("resnet18", RESNET))))
    assert_equal(*(update(model, halves) for model in reversed(pair("resnet18", RESNET, split_norm=True))))
    groups = pair("resnet18", RESNET, norm_stats="groups:2")
    assert_equal(*(update(model.eval(), attacking) for model in reversed(groups)))
    gradients = []
    for model in pair("deit_mini_patch16_224", MODELS["deit"][1], drop_path=0.5):
        logits = model.eval()(IMAGE)
        model.train()
        logits.sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        assert all(part.training for part in model.modules()), "and afterwards as it is now"
    assert_equal(*gradients)


def test_a_copy_runs_its_own_weights() -> None:
    _, saving = pair("resnet18", RESNET)
    twin = copy.deepcopy(saving)
    with torch.no_grad():
        for p in saving.parameters():
            p.zero_()
    twin(IMAGE).sum().backward()
    assert all(p.grad is None for p in saving.parameters())
    assert any(p.grad.any() for p in twin.parameters() if p.grad is not None)


def test_it_can_be_undone_and_done_twice() -> None:
    model = build("deit_mini_patch16_224", MODELS["deit"][1])
    runs: list[bool] = []
    model.backbone.blocks[1].norm1.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    kinds = [type(block) for block in blocks(model)]
    for checkpoint_of, expected in ((torch_checkpoint, 2), (torch_checkpoint, 2), (None, 1)):
        assert recompute_blocks(model, checkpoint_of) == 3
        assert all(isinstance(block, kind) for block, kind in zip(blocks(model), kinds, strict=True))
        runs.clear()
        model(IMAGE).sum().backward()
        assert len(runs) == expected
    assert [type(block) for block in blocks(model)] == kinds
    recompute_blocks(model, torch_checkpoint)
    runs.clear()
    with torch.no_grad():
        model(IMAGE)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("small_cnn", "small_cnn.*no group_matcher"), ("vgg11", "'vgg11' has no blocks that could run again")],
)
def test_a_model_without_blocks_is_refused(name: str, message: str) -> None:
    model = build(name, {})
    with pytest.raises(ValueError, match=message) as caught:
        recompute_blocks(model, torch_checkpoint)
    assert "\n" not in str(caught.value)
