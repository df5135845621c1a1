"""Two small models for images of 32 to 64 pixels: what quickstart and tests train on a laptop.

Both are ordinary timm models (registered on import), so recipes name them like any other; neither has weights
to download. Cost at 32 px, per image forward: small_cnn 5.5 MMAC and 0.16 M parameters, small_vit 22 MMAC and
0.31 M.
"""

from typing import Any

import torch
from timm.layers import DropPath, get_act_layer
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

# what timm asks of every registered model; no url, so there is nothing that could be downloaded
default_cfgs = generate_default_cfgs(
    {
        "small_cnn.untrained": {"input_size": (3, 32, 32), "first_conv": "stem.conv", "classifier": "head"},
        "small_vit.untrained": {
            "input_size": (3, 32, 32),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "fixed_input_size": True,
        },
    }
)


class SmallCNN(nn.Module):
    """A plain BatchNorm CNN: stride-2 stem, three residual stages at 1/2, 1/4, 1/8 of the size.

    image (N,3,H,W) -> logits (N,K), any H and W from 8 up. The stages are `width`, 2 `width` and 4 `width` wide;
    `act_layer` is timm's name of the activation ("relu", "gelu"). ValueError for a width below 1.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        width: int = 24,
        act_layer: str = "relu",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"small_cnn width {width} must be 1 or more; the default is 24")
        act = _activation(act_layer)
        widths = (width, 2 * width, 4 * width)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = ConvNorm(in_chans, width, act, stride=2)
        stages: list[nn.Module] = []
        width_in = width
        for index, width_out in enumerate(widths):
            drop_path = drop_path_rate * index / (len(widths) - 1)  # linear with depth, as in timm
            stages.append(Stage(width_in, width_out, act, stride=1 if index == 0 else 2, drop_path=drop_path))
            width_in = width_out
        self.stages = nn.Sequential(*stages)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(width_in, num_classes)
        self.apply(_initialise)

    def forward_features(self, image: Tensor) -> Tensor:
        """image (N,3,H,W) -> features (N,96,H/8,W/8)."""
        features: Tensor = self.stages(self.stem(image))
        return features

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.head_drop(self.forward_features(image).mean((2, 3))))
        return logits


class ConvNorm(nn.Module):
    """3x3 convolution, BatchNorm, activation; no convolution bias, because BatchNorm would cancel it."""

    def __init__(self, width_in: int, width: int, act: type[nn.Module], *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class Stage(nn.Module):
    """A convolution that changes width and size, then a residual one at constant shape."""

    def __init__(
        self, width_in: int, width: int, act: type[nn.Module], *, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        is_same = width_in == width and stride == 1
        self.down = nn.Identity() if is_same else ConvNorm(width_in, width, act, stride=stride)
        self.conv = ConvNorm(width, width, act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        out: Tensor = x + self.drop_path(self.conv(x))
        return out


def _activation(name: str) -> type[nn.Module]:
    try:
        act: type[nn.Module] | None = get_act_layer(name)
    except KeyError:
        act = None
    if act is None:
        raise ValueError(f"unknown act_layer {name!r}; use timm's names, such as relu, gelu or silu")
    return act


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@register_model  # type: ignore[misc,unused-ignore]
def small_cnn(pretrained: bool = False, **kwargs: Any) -> SmallCNN:
    """SmallCNN through timm's builder (takes num_classes, drop_rate, drop_path_rate, width, act_layer)."""
    _refuse_pretrained("small_cnn", pretrained)
    model: SmallCNN = build_model_with_cfg(SmallCNN, "small_cnn", False, **kwargs)
    return model


@register_model  # type: ignore[misc,unused-ignore]
def small_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-like transformer for small images: patch 4, width 96, depth 4, 3 heads, mean-pooled tokens.

    Takes num_classes, img_size (a multiple of 4, default 32), drop_path_rate and what timm's
    VisionTransformer takes.
    """
    _refuse_pretrained("small_vit", pretrained)
    settings: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        "class_token": False,
        "global_pool": "avg",
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "small_vit", False, **(settings | kwargs)
    )
    _start_from_sincos(model)
    return model


@torch.no_grad()
def _start_from_sincos(model: VisionTransformer) -> None:
    """Start the learned position embedding from sines and cosines (Beyer et al. 2022, arXiv:2205.01580).

    timm's start is noise of 0.02: on 1,437 digits, ten epochs then reach 70 % instead of 97 %. The
    wavelengths go from 6 to 63 patches (their temperature is 10,000, for larger grids).
    """
    if model.pos_embed is None:
        return
    rows, columns = model.patch_embed.grid_size
    if model.embed_dim % 4:
        raise ValueError(
            f"small_vit's embed_dim {model.embed_dim} is not a multiple of 4; try {model.embed_dim // 4 * 4}"
        )
    frequency = 10.0 ** -torch.linspace(0.0, 1.0, model.embed_dim // 4)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angle_row, angle_column = row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency
    table = torch.cat((angle_row.sin(), angle_row.cos(), angle_column.sin(), angle_column.cos()), 1)
    # class and register tokens come first and keep timm's start
    model.pos_embed[:, -rows * columns :] = table


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ValueError(f"{name} has no published weights; set pretrained to false")
