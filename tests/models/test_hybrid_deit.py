"""Hybrid-DeiT: its tokens, and the ResNet-18 in front."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import models  # noqa: F401  (registers the model)


def tiny(**settings: Any) -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "depth": 2, "num_classes": 5, "img_size": 48}
    return timm.create_model("hybrid_deit_mini", **(small | settings))


def image(number: int = 4, size: int = 48) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("stage", "size", "tokens"), [("layer4", 50, 4), ("layer3", 50, 16), ("layer4", 96, 9)]
)
def test_tokens_of_the_hybrid(stage: str, size: int, tokens: int) -> None:
    model = tiny(hybrid_stage=stage, img_size=size)
    assert model.pos_embed.shape == (1, 1 + tokens, 64)
    assert model(image(2, size)).shape == (2, 5)
    assert not any("layer4" in name for name, _ in model.named_parameters()) or stage == "layer4"


def test_hybrid_at_224_has_as_many_tokens_as_published() -> None:
    with torch.device("meta"):
        tokens = {
            s: timm.create_model("hybrid_deit_mini", hybrid_stage=s).pos_embed.shape[1]
            for s in ("layer3", "layer4")
        }
    assert tokens == {"layer3": 197, "layer4": 50}


def test_residual_blocks_of_the_hybrid_start_alive() -> None:
    norms = [m for n, m in tiny().named_modules() if n.endswith("bn2")]
    assert len(norms) == 8
    assert all(norm.weight.all() for norm in norms)


def test_checkpointing_counts_each_batch_once() -> None:
    model = tiny().train()
    model.set_grad_checkpointing()
    model(image()).sum().backward()
    counters = [tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20
    assert all(int(counter) == 1 for counter in counters)


def test_names_of_the_two_parts() -> None:
    names = list(tiny(depth=1).state_dict())
    assert {name.partition(".")[0] for name in names} == {
        "cls_token",
        "pos_embed",
        "patch_embed",
        "blocks",
        "norm",
        "head",
    }
    resnet = set(timm.create_model("resnet18", num_classes=0).state_dict())
    prefix = "patch_embed.backbone."
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == resnet
