"""DeiT's own sizes, the start with zeros, two heads; what holds for the hybrid too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from models.deit import set_distilled_training
from models.load import load_weights
from models.registry import create_model

TINY: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "depth": 2, "num_classes": 5, "img_size": 48}
PIXELS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 48, "num_classes": 5}


def tiny(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **(TINY | settings))


def image(number: int = 4, size: int = 48) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0))


# ---- names


BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def test_names_and_shapes_of_mini() -> None:
    with torch.device("meta"):
        state = timm.create_model("deit_mini_patch16_224").state_dict()
    layers = [
        "patch_embed.proj",
        "norm",
        "head",
        *(f"blocks.{i}.{part}" for i in range(12) for part in BLOCK),
    ]
    names = {
        "cls_token",
        "pos_embed",
        *(f"{layer}.{part}" for layer in layers for part in ("weight", "bias")),
    }
    assert state.keys() == names
    shapes = {
        "pos_embed": (1, 197, 256),
        "patch_embed.proj.weight": (256, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (768, 256),
        "blocks.11.mlp.fc1.weight": (1024, 256),
        "head.weight": (1000, 256),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize(("name", "width", "heads"), [("mini", 256, 4), ("mid", 512, 8)])
def test_layers(name: str, width: int, heads: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"deit_{name}_patch16_224")
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (width, 12, heads)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 25
    assert {norm.eps for norm in norms} == {1e-6}
    assert isinstance(model.blocks[0].mlp.act, nn.GELU)
    assert model.no_weight_decay() >= {"pos_embed", "cls_token"}


# ---- the start


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "base"])
def test_blocks_of_the_zero_start_are_the_identity(size: str) -> None:
    model = tiny(f"deit_{size}_zeroinit_patch16_224")
    tokens = torch.randn(2, 10, 64)
    for block in model.blocks:
        assert torch.equal(block(tokens), tokens)
    plain = tiny("deit_mini_patch16_224")
    changed = {
        n for n, tensor in plain.state_dict().items() if not torch.equal(tensor, model.state_dict()[n])
    }
    assert changed == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.proj", "mlp.fc2")}


@pytest.mark.parametrize(
    "name", ["deit_mini_patch16_224", "deit_mini_distilled_patch16_224", "hybrid_deit_mini"]
)
def test_zero_start_is_an_option_of_all(name: str) -> None:
    assert all(not block.mlp.fc2.weight.any() for block in tiny(name, zero_init=True).blocks)
    assert all(block.mlp.fc2.weight.any() for block in tiny(name).blocks)
    assert (
        not tiny(name, zero_init=True, features_only=True, out_indices=(0, 1))
        .model.blocks[0]
        .attn.proj.weight.any()
    )


def test_zero_start_can_be_taken_back() -> None:
    assert tiny("deit_mini_zeroinit_patch16_224", zero_init=False).blocks[0].mlp.fc2.weight.any()


# ---- two heads


def distilled() -> Any:
    torch.manual_seed(0)
    args = {"embed_dim": 64, "num_heads": 2, "depth": 2}
    return create_model("deit_mini_distilled_patch16_224", **PIXELS, **args)


def test_two_heads_give_one_tensor_unless_asked() -> None:
    model = distilled()
    mean = model.train()(image())
    set_distilled_training(model)
    pair = model(image())
    assert [logits.shape for logits in pair] == [(4, 5), (4, 5)]
    assert not torch.allclose(*pair)
    torch.testing.assert_close((pair[0] + pair[1]) / 2, mean)
    torch.testing.assert_close(model.eval()(image()), mean)  # no dropout: one tensor in eval mode
    set_distilled_training(model.train(), False)
    torch.testing.assert_close(model(image()), mean)


def test_heads_learn_from_their_own_targets() -> None:
    model = distilled().train()
    set_distilled_training(model)
    logits, copied = model(image())
    F.cross_entropy(copied, torch.arange(4)).backward()
    assert model.backbone.head_dist.weight.grad.any()
    assert model.backbone.head.weight.grad is None
    assert logits.requires_grad


def test_no_second_head_is_one_line() -> None:
    one = create_model("small_cnn", **PIXELS)
    with pytest.raises(ValueError, match=r"'small_cnn' has one head.*deit_mini_distilled"):
        set_distilled_training(one)
    with pytest.raises(ValueError, match="'ResNet' has one head"):
        set_distilled_training(timm.create_model("resnet18", num_classes=2))


def test_distillation_token_is_not_decayed() -> None:
    model = tiny("deit_mini_distilled_patch16_224")
    assert model.no_weight_decay() >= {"pos_embed", "cls_token", "dist_token"}
    assert model.pos_embed.shape == (1, 9 + 2, 64)


# ---- of all


ALL = (
    "deit_mini_patch16_224",
    "deit_mini_zeroinit_patch16_224",
    "deit_mini_distilled_patch16_224",
    "hybrid_deit_mini",
)


@pytest.mark.parametrize("name", ALL)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    grads = []
    for enable in (False, True):
        model = tiny(name).train()
        model.set_grad_checkpointing(enable)
        model(image()).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ALL)
def test_feature_maps_and_new_classifier(name: str) -> None:
    maps = tiny(name, features_only=True, out_indices=(0, 1))(image())
    assert [m.shape[:2] for m in maps] == [(4, 64), (4, 64)]
    model = tiny(name)
    model.reset_classifier(11)
    assert model(image()).shape == (4, 11)


@pytest.mark.parametrize("name", ALL)
def test_other_image_size(name: str, tmp_path: Path) -> None:
    """set_input_size resamples the position embedding, and so does loading a file of another size."""
    model = tiny(name)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    model.set_input_size(img_size=80)
    larger = tiny(name, img_size=80)
    load_weights(larger, tmp_path / "w.pth")
    torch.testing.assert_close(larger.pos_embed, model.pos_embed)
    torch.testing.assert_close(larger.eval()(image(2, 80)), model.eval()(image(2, 80)))


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_downloaded(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} has no .*pretrained to false"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: tiny("hybrid_deit_mini", hybrid_stage="layer2"),
            "unknown hybrid_stage 'layer2'; use 'layer4'",
        ),
        (
            lambda: create_model("deit_mini_patch16_224", **(PIXELS | {"image_size": 50})),
            "image size 50 is no multiple .* patch size 16; try 48 or 64",
        ),
        (lambda: create_model("deit_mini_patch16_224", **PIXELS, zero=True), "no setting 'zero'"),
        (lambda: create_model("hybrid_deit_mini", **PIXELS, stage="layer3"), "no setting 'stage'"),
    ],
)
def test_mistakes_are_one_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
