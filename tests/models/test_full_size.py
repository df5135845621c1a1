"""Every architecture as published: parameters, multiply-adds, and (slow) one forward and backward on the cpu."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from timm.models import list_models, model_entrypoint
from torch import nn

import models  # noqa: F401  (registers the toolkit's own)
from models.catalogue import count_macs
from models.registry import create_model
from tests.models.every import EVERY

PIXELS: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 1000}
PARAMETERS = {
    "robust_resnet_dw_small": 38_558_440,
    "robust_resnet_inverted_dw_small": 33_618_088,
    "robust_resnet_up_inverted_dw_small": 34_432_552,
    "robust_resnet_down_inverted_dw_small": 34_316_776,
    "resnet18": 11_689_512,
    "resnet18_gelu": 11_689_512,
    "resnet50": 25_557_032,
    "resnet50_gelu": 25_557_032,
    "resnet101": 44_549_160,
    "resnet101_gelu": 44_549_160,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_mini_patch16_224": 9_982_184,
    "deit_small_patch16_224": 22_050_664,
    "deit_mid_patch16_224": 38_837_736,
    "deit_base_patch16_224": 86_567_656,
    "deit_tiny_zeroinit_patch16_224": 5_717_416,
    "deit_mini_zeroinit_patch16_224": 9_982_184,
    "deit_small_zeroinit_patch16_224": 22_050_664,
    "deit_base_zeroinit_patch16_224": 86_567_656,
    # a token, its position, and a second head of 256 x 1000 + 1000
    "deit_mini_distilled_patch16_224": 9_982_184 + 256 + 256 + 257_000,
    "hybrid_deit_mini": 21_055_528,
    "convnext_tiny": 28_589_128,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "poolformer_s36": 30_862_760,
}
GMACS = {  # as the papers and their code have it; attention's products included
    "robust_resnet_dw_small": 4.47,
    "robust_resnet_inverted_dw_small": 4.57,
    "robust_resnet_up_inverted_dw_small": 4.42,
    "robust_resnet_down_inverted_dw_small": 4.53,
    "deit_small_patch16_224": 4.6,
    "resnet50": 4.09,
}


def own_models() -> set[str]:
    return {name for name in list_models() if model_entrypoint(name).__module__.startswith("models.")}


@cache
def on_meta(name: str, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **settings)
    return model


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert count(on_meta(name)) == PARAMETERS[name]


def test_parameters_of_the_other_hybrid() -> None:
    assert count(on_meta("hybrid_deit_mini", hybrid_stage="layer3")) == 12_633_896


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds(name: str) -> None:
    set_fused_attn(False)  # the fused kernel is not counted on meta tensors
    try:
        with torch.device("meta"):
            macs = count_macs(timm.create_model(name), (3, 224, 224))
    finally:
        set_fused_attn(True)
    assert macs == pytest.approx(GMACS[name] * 1e9, rel=0.005)


def test_all_are_counted() -> None:
    """Robust-ResNets of base size are in proportion to the small ones, nobody published them."""
    bases = {name for name in own_models() if name.endswith("_base")}
    assert own_models() - bases - {"small_cnn", "small_vit"} <= PARAMETERS.keys()
    assert {case.name for case in EVERY} - {"small_cnn", "small_vit", "poolformer_s12"} <= PARAMETERS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() | own_models()))
def test_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, image_size=224, **PIXELS).train()
    assert PARAMETERS.get(name, count(model)) == count(model)
    logits = model(torch.rand(2, 3, 224, 224))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert logits.shape == (2, 1000)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
