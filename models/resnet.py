"""ResNet-18/50/101 with exact GELU in place of every ReLU (Bai et al. 2021, arXiv:2111.05464).

timm's ResNet, so names and shapes are torchvision's (conv1, bn1, layer1.0.conv1, ..., fc), stride in the 3x3. The
ReLU networks are timm's own resnet18, resnet50 and resnet101; `model.args: {act_layer: gelu}` makes them these.
Norms: models.convert.set_norm, or a recipe's norm_stats.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

CFG: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "first_conv": "conv1",
    "classifier": "fc",
    "paper_ids": "arXiv:2111.05464",
}

# no url: nothing that could be downloaded
default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": CFG for name in ("resnet18_gelu", "resnet50_gelu", "resnet101_gelu")}
)


def _gelu(name: str, pretrained: bool, given: dict[str, Any], **settings: Any) -> ResNet:
    if pretrained:
        raise ValueError(
            f"{name} has no weights to download; set pretrained to false and load a file of weights"
        )
    # The papers' start: the last norm of a block begins at 1, not at timm's 0, which also leaves the block's
    # convolutions without a gradient in the first step.
    defaults = {"act_layer": "gelu", "zero_init_last": False}
    model: ResNet = build_model_with_cfg(ResNet, name, False, **(defaults | settings | given))
    return model


@register_model  # type: ignore[misc,unused-ignore]
def resnet18_gelu(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with GELU: 11.69 M parameters. Takes what timm's ResNet takes."""
    return _gelu("resnet18_gelu", pretrained, kwargs, block=BasicBlock, layers=(2, 2, 2, 2))


@register_model  # type: ignore[misc,unused-ignore]
def resnet50_gelu(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with GELU: 25.56 M parameters. Takes what timm's ResNet takes."""
    return _gelu("resnet50_gelu", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model  # type: ignore[misc,unused-ignore]
def resnet101_gelu(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101 with GELU: 44.55 M parameters. Takes what timm's ResNet takes."""
    return _gelu("resnet101_gelu", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 23, 3))
