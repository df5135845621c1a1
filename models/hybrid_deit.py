"""Hybrid-DeiT of Bai et al. 2021 (arXiv:2111.05464): the stages of a ResNet-18, then the blocks of DeiT-Mini.

The paper names ResNet-18's "res_4 block" and published neither code nor weights. `hybrid_stage="layer4"` (default)
reads it as the last stage: 512 channels at 1/32 of the size, 49 tokens at 224 px, 21,055,528 parameters, the figure
nearest to the paper's. "layer3" reads it as conv4_x: 256 channels at 1/16, 196 tokens, 12.63 M.

timm's VisionTransformer over its HybridEmbed. Parameters: `patch_embed.backbone.{conv1,bn1,layer1..}` with timm's
ResNet names, `patch_embed.proj` (1x1 convolution to 256), then DeiT's. Any `img_size` goes: a stage's map has
ceil(size/32) or ceil(size/16) tokens a side. Drop path and gradient
checkpointing act on the transformer's blocks only.
"""

from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import resnet18
from timm.models.vision_transformer import VisionTransformer

from models.deit import MINI, zero_residual_branches

STAGES = {"layer3": 3, "layer4": 4}  # timm's index of the feature map
default_cfgs = generate_default_cfgs(
    {
        "hybrid_deit_mini.untrained": {
            "input_size": (3, 224, 224),
            "first_conv": "patch_embed.backbone.conv1",
            "classifier": "head",
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "paper_ids": "arXiv:2111.05464",
        }
    }
)


class StageEmbed(HybridEmbed):  # type: ignore[misc,unused-ignore]
    """timm's, but gradient checkpointing stays in the transformer.

    Run a second time in the backward pass, the ResNet's BatchNorms would count each batch twice.
    """

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Nothing: see the class."""


@register_model  # type: ignore[misc,unused-ignore]
def hybrid_deit_mini(
    pretrained: bool = False, *, hybrid_stage: str = "layer4", zero_init: bool = False, **kwargs: Any
) -> VisionTransformer:
    """Hybrid-DeiT. `zero_init` as in models/deit.py; takes what timm's VisionTransformer takes besides.

    ValueError for a stage other than layer3 and layer4.
    """
    if pretrained:
        raise ValueError("hybrid_deit_mini has no published weights; set pretrained to false")
    if hybrid_stage not in STAGES:
        raise ValueError(f"unknown hybrid_stage {hybrid_stage!r}; use 'layer4' (1/32) or 'layer3' (1/16)")
    backbone = resnet18(
        features_only=True,
        out_indices=(STAGES[hybrid_stage],),
        in_chans=kwargs.get("in_chans", 3),
        zero_init_last=False,  # as in Bai et al.'s ResNets
    )
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "hybrid_deit_mini",
        False,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        embed_layer=partial(StageEmbed, backbone=backbone),
        **{"patch_size": 1, "depth": 12, **MINI, **kwargs},
    )
    if zero_init:
        zero_residual_branches(getattr(model, "model", model))
    return model
