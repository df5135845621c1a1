"""A recipe's model name -> a PixelModel: timm's registry, plus the toolkit's own models, behind one function.

Nothing is downloaded unless `pretrained` says so. timm's constructors differ in what they take: an image size
is given to those that know one (transformers) and left out for the rest, a drop-path rate likewise.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import PatchEmbed
from timm.models import get_arch_name, is_model
from torch import nn

from models import small as small  # registers small_cnn and small_vit
from models.batchnorm import Reduce
from models.convert import set_norm
from models.norm import set_norm_stats
from models.pixel import PixelModel
from models.split import SplitNorm2d


def create_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    norm_stats: str = "local",
    split_norm: bool = False,
    num_devices: int = 1,
    reduce: Reduce | None = None,
    world_size: int = 1,
    native_norm: bool = True,
    drop_path: float = 0.0,
    pretrained: bool = False,
    **extra: Any,
) -> PixelModel:
    """The model `name` (timm's names and list_models()) with fresh weights from torch's global generator.

    `mean` and `std` are in pixel units; norm_stats, num_devices, reduce, world_size and native_norm as in
    models.norm; `split_norm` makes two norms of every BatchNorm (models.split), and those statistics hold for
    both; `extra` goes to the model's constructor. Raises ValueError for an unknown name, for a setting
    the model does not have, or for an image size it cannot take.
    """
    check_name(name)
    if num_classes < 1:
        raise ValueError(f"num_classes {num_classes} is below 1; a classifier needs at least one class")
    settings = {"num_classes": num_classes, "img_size": image_size, "drop_path_rate": drop_path, **extra}
    backbone = _build(name, settings, pretrained=pretrained)
    _check_patches(name, backbone, image_size)
    if split_norm:
        set_norm(backbone, "split")
        if not any(isinstance(module, SplitNorm2d) for module in backbone.modules()):
            raise ValueError(
                f"model {name!r} has no BatchNorm to split; set split_norm to false, or take another"
            )
    set_norm_stats(
        backbone,
        norm_stats,
        num_devices=num_devices,
        reduce=reduce,
        world_size=world_size,
        native=native_norm,
    )
    return PixelModel(backbone, mean, std, num_classes=num_classes, image_size=image_size, name=name)


def list_models(pattern: str = "") -> list[str]:
    """Names that create_model knows, sorted; `pattern` is a shell pattern such as "deit_*" (empty: all)."""
    return list(timm.list_models(pattern))


def check_name(name: str) -> None:
    """ValueError, with the nearest, for a name that create_model does not know."""
    # is_model also refuses timm's "hf-hub:..." names, which would fetch a file
    if is_model(get_arch_name(name)):
        return
    known = list_models()
    near = difflib.get_close_matches(get_arch_name(name), known, n=3, cutoff=0.5)
    remedy = f"nearest: {', '.join(near)}" if near else "small_cnn, small_vit, or one of timm's names"
    raise ValueError(f"unknown model {name!r}; it must be one of {len(known)} known names; {remedy}")


def _check_patches(name: str, backbone: nn.Module, image_size: int) -> None:
    embed = getattr(backbone, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    patch = embed.patch_size[0]
    lower = image_size // patch * patch
    if lower != image_size:  # timm would cut the remainder off the image without a word
        near = f"{lower} or {lower + patch}" if lower else f"{patch}"
        raise ValueError(f"image size {image_size} is no multiple of {name}'s patch size {patch}; try {near}")


def _build(name: str, settings: dict[str, Any], *, pretrained: bool) -> nn.Module:
    settings = dict(settings)
    while True:
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **settings)
            return model
        except TypeError as error:
            # raised at the constructor's door, before any layer is made, so a second try costs nothing
            _drop_refused(name, settings, error)
        except (AssertionError, RuntimeError, AttributeError, LookupError) as error:
            # timm's way to refuse a size, a tag, a combination
            raise ValueError(f"model {name!r} refuses {settings}: {error}") from error


def _drop_refused(name: str, settings: dict[str, Any], error: TypeError) -> None:
    """Remove the argument that the constructor refused, if that means the same; ValueError otherwise."""
    # two wordings: Python's "argument 'x'" and timm's "argument(s): ['x', 'y']"
    match = re.search(r"unexpected keyword argument\D*?'(\w+)'", str(error))
    argument = match.group(1) if match else ""
    if argument not in settings:  # a value of the wrong type, met somewhere inside
        raise ValueError(f"model {name!r} refuses {settings}: {error}") from error
    value = settings.pop(argument)
    if argument == "img_size" or (argument == "drop_path_rate" and value == 0.0):
        return
    shown = "drop_path" if argument == "drop_path_rate" else argument
    raise ValueError(
        f"model {name!r} has no setting {shown!r} (given {value!r}); remove it or take another model"
    )
