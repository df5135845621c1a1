"""How a model's published weights want their images: size, normalisation, resize, by timm's default configuration."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.models import get_pretrained_cfg

from models.registry import check_name


class Defaults(NamedTuple):
    """The fields that decide what reaches a model."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str  # center, squash or border
    num_classes: int
    license: str


def model_defaults(name: str) -> Defaults:
    """Of the registered model `name`, such as "resnet50" or "resnet50.a1_in1k". ValueError for unknown names."""
    check_name(name)
    config = get_pretrained_cfg(name, allow_unregistered=True)
    return describe_config({} if config is None else config.to_dict())


def describe_config(config: Mapping[str, Any]) -> Defaults:
    """Of one of timm's configurations; what it does not say is timm's usual."""
    return Defaults(
        image_size=int(config.get("input_size", (3, 224, 224))[-1]),
        mean=tuple(map(float, config.get("mean", (0.485, 0.456, 0.406)))),
        std=tuple(map(float, config.get("std", (0.229, 0.224, 0.225)))),
        interpolation=str(config.get("interpolation", "bicubic")),
        crop_pct=float(config.get("crop_pct") or 0.875),
        crop_mode=str(config.get("crop_mode") or "center"),
        num_classes=int(config.get("num_classes", 1000)),
        license=str(config.get("license") or ""),
    )
