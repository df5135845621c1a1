"""Clipping against torch's and timm's, and in a train step."""

import copy

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from timm.utils.clip_grad import dispatch_clip_grad
from torch import nn

from bits.environment import open_environment
from engine.clipping import clip_adaptively, clip_by_norm, clip_of
from engine.fields import OptimSection
from models.pixel import PixelModel
from models.registry import create_model
from tests.engine.one_step import knobs, make_batch, make_step


def model(name: str = "small_cnn") -> PixelModel:
    torch.manual_seed(0)
    return create_model(name, num_classes=5, image_size=16, mean=[0.5] * 3, std=[0.5] * 3)


def fill(module: nn.Module) -> None:
    """Gradients of very different length; one unit is all zero."""
    generator = torch.Generator().manual_seed(1)
    for number, p in enumerate(module.parameters()):
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (number % 5 - 4)
        p.grad[0] = 0.0


@pytest.mark.parametrize("name", ["small_cnn", "small_vit"])
@pytest.mark.parametrize("factor", [0.01, 0.3])
def test_adaptive_clipping_is_timms_without_the_head(name: str, factor: float) -> None:
    mine = model(name)
    fill(mine)
    twin = copy.deepcopy(mine)
    for p, q in zip(mine.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    free = [p.grad.clone() for p in mine.parameters()]
    clip_adaptively(mine, factor)
    # timm's train script: parameters without the last two, which here are the classifier's.
    adaptive_clip_grad(list(twin.parameters())[:-2], clip_factor=factor)
    changed = 0
    for (n, p), q, before in zip(mine.named_parameters(), twin.parameters(), free, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9, msg=n)
        changed += not torch.equal(p.grad, before)
        assert torch.equal(p.grad, before) or ".head." not in n, n
    assert changed > 5


def test_both_heads_of_two_are_left_out() -> None:
    """Four parameters, where timm leaves out two."""
    net = create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=5,
        image_size=32,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        depth=1,
        embed_dim=48,
    )
    fill(net)
    free = {n: p.grad.clone() for n, p in net.named_parameters()}
    clip_adaptively(net, 1e-4)
    kept = {n for n, p in net.named_parameters() if torch.equal(p.grad, free[n])}
    assert {n for n in free if ".head" in n} <= kept
    assert len([n for n in free if ".head" in n]) == 4


def test_the_norm_is_timms() -> None:
    mine, twin = model(), model()
    fill(mine)
    fill(twin)
    clip_by_norm(mine, 0.5)
    dispatch_clip_grad(twin.parameters(), 0.5, mode="norm")
    for p, q in zip(mine.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_recipe_says_which() -> None:
    assert clip_of(OptimSection(lr=1.0)) is None
    net = model()
    for fields, wanted in (({"clip_norm": 0.5}, clip_by_norm), ({"clip_agc": 0.5}, clip_adaptively)):
        fill(net)
        twin = copy.deepcopy(net)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        clip = clip_of(OptimSection.model_validate({"lr": 1.0, **fields}))
        assert clip is not None
        clip(net)
        wanted(twin, 0.5)
        assert all(
            torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), twin.parameters(), strict=True)
        )


def test_a_step_clips() -> None:
    env = open_environment("cpu")
    free, clipped = model(), model()
    start = [p.detach().clone() for p in free.parameters()]
    make_step(env, free)(make_batch(), knobs())
    make_step(env, clipped, clip=clip_of(OptimSection(lr=1.0, clip_agc=1e-3)))(make_batch(), knobs())
    head = {id(p) for p in clipped.backbone.head.parameters()}
    for before, p, q in zip(start, free.parameters(), clipped.parameters(), strict=True):
        far, near = (p - before).norm().item(), (q - before).norm().item()
        assert near == pytest.approx(far, rel=1e-5) if id(q) in head else near < far
