"""DeiT (Touvron et al. 2021, arXiv:2012.12877) where timm has no entry: Mini, Mid, Bai et al.'s start, two heads.

Tiny, Small and Base are timm's (`deit_small_patch16_224`), as are their two-head forms (`deit_small_distilled_...`).
Mini (256 wide, 4 heads) is the transformer that Bai et al. 2021 (arXiv:2111.05464) set beside ResNet-18; Mid is 512
wide with 8 heads. All are 12 blocks of patch 16 with LayerNorm eps 1e-6, and timm's VisionTransformer in everything:
`img_size` (a multiple of 16) sizes the position embedding, `set_input_size` resamples it.

`zero_init=True`, and the names with `zeroinit` in them: `attn.proj.weight` and `mlp.fc2.weight` of every block start
at zero, as in Bai et al.'s code, so that every block starts as the identity; DeiT's own start does not. In the first
step only these matrices, the biases behind them and what lies outside the blocks have a gradient.

A distilled model has a second token and a second head. It returns one tensor, the mean of both heads' logits, in
eval mode and in train mode, so it trains and is attacked like any other. After set_distilled_training(model) it
returns in train mode, and only there, the pair (logits of the class head, logits of the distillation head).
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

_CONFIG = {
    "input_size": (3, 224, 224),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# no url: nothing of these can be downloaded
default_cfgs = generate_default_cfgs(
    {
        "deit_mini_patch16_224.untrained": _CONFIG,
        "deit_mid_patch16_224.untrained": _CONFIG,
        "deit_tiny_zeroinit_patch16_224.untrained": _CONFIG,
        "deit_mini_zeroinit_patch16_224.untrained": _CONFIG,
        "deit_small_zeroinit_patch16_224.untrained": _CONFIG,
        "deit_base_zeroinit_patch16_224.untrained": _CONFIG,
        "deit_mini_distilled_patch16_224.untrained": _CONFIG | {"classifier": ("head", "head_dist")},
    }
)
TINY = {"embed_dim": 192, "num_heads": 3}
MINI = {"embed_dim": 256, "num_heads": 4}
SMALL = {"embed_dim": 384, "num_heads": 6}
MID = {"embed_dim": 512, "num_heads": 8}
BASE = {"embed_dim": 768, "num_heads": 12}


@torch.no_grad()
def zero_residual_branches(model: VisionTransformer) -> None:
    """Set the last matrix of every attention and every MLP to zero, in place; biases are zero already."""
    for block in model.blocks:
        block.attn.proj.weight.zero_()
        block.mlp.fc2.weight.zero_()


def set_distilled_training(model: nn.Module, enable: bool = True) -> None:
    """Let a two-head model return (class logits, distillation logits), each (N,K), in train mode; or one tensor again.

    `model` may be a PixelModel, which hands the pair on. ValueError for a model with one head.
    """
    heads = [module for module in model.modules() if isinstance(module, VisionTransformerDistilled)]
    if not heads:
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"model {name!r} has one head, no distillation head; take one such as deit_mini_distilled_patch16_224"
        )
    for module in heads:
        module.set_distilled_training(enable)


def _build(
    name: str,
    pretrained: bool,
    size: dict[str, int],
    given: dict[str, Any],
    *,
    kind: type[VisionTransformer] = VisionTransformer,
    zero_init: bool = False,
) -> VisionTransformer:
    if pretrained:
        raise ValueError(
            f"{name} has no weights to download; set pretrained to false and load a file instead"
        )
    given = {"patch_size": 16, "depth": 12, **size, **given}
    zero_init = given.pop("zero_init", zero_init)
    out_indices = given.pop("out_indices", 3)
    model: VisionTransformer = build_model_with_cfg(
        kind,
        name,
        False,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **given,
    )
    if zero_init:
        # features_only wraps the transformer
        zero_residual_branches(getattr(model, "model", model))
    return model


@register_model  # type: ignore[misc,unused-ignore]
def deit_mini_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Mini, 9,982,184 parameters. Takes `zero_init` and what timm's VisionTransformer takes."""
    return _build("deit_mini_patch16_224", pretrained, MINI, kwargs)


@register_model  # type: ignore[misc,unused-ignore]
def deit_mid_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT of width 512, 38.84 M parameters. Takes `zero_init` and what timm's VisionTransformer takes."""
    return _build("deit_mid_patch16_224", pretrained, MID, kwargs)


@register_model  # type: ignore[misc,unused-ignore]
def deit_tiny_zeroinit_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Tiny whose blocks start as the identity."""
    return _build("deit_tiny_zeroinit_patch16_224", pretrained, TINY, kwargs, zero_init=True)


@register_model  # type: ignore[misc,unused-ignore]
def deit_mini_zeroinit_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Mini whose blocks start as the identity, as Bai et al. train it."""
    return _build("deit_mini_zeroinit_patch16_224", pretrained, MINI, kwargs, zero_init=True)


@register_model  # type: ignore[misc,unused-ignore]
def deit_small_zeroinit_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Small whose blocks start as the identity, as Bai et al. train it."""
    return _build("deit_small_zeroinit_patch16_224", pretrained, SMALL, kwargs, zero_init=True)


@register_model  # type: ignore[misc,unused-ignore]
def deit_base_zeroinit_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Base whose blocks start as the identity."""
    return _build("deit_base_zeroinit_patch16_224", pretrained, BASE, kwargs, zero_init=True)


@register_model  # type: ignore[misc,unused-ignore]
def deit_mini_distilled_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Mini with a distillation token and a second head (this file's docstring says what it returns)."""
    return _build(
        "deit_mini_distilled_patch16_224", pretrained, MINI, kwargs, kind=VisionTransformerDistilled
    )
