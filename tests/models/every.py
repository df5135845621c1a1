"""Every architecture once, small enough for a test, and the checks' common parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pixel import PixelModel
from models.registry import create_model

NUM_CLASSES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A registered model, reduced; `args` go to its constructor."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    odd: int = 45  # another size: odd, or with an odd number of patches a side
    stage_blocks: int = 0  # how many blocks of each stage stay; 0: all, the constructor reduced the depth
    slow_start: bool = False  # what has no gradient in the first step gets one in the second
    dead: tuple[
        str, ...
    ] = ()  # ends of the names of parameters without a gradient: biases before a BatchNorm


TINY_VIT: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "depth": 2}
TINY_RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "zero_init_last": False}
TINY_ROBUST: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}
TINY_SWIN: dict[str, Any] = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4)}
# Before a BatchNorm a constant does nothing. In the inverted kinds blocks hand on sums of linear maps, so that the
# BatchNorms of the next block take away the constants of all layers before them, up to the last stage's; not where
# a wider convolution with zero padding comes between.
INNER_NORMS = r"stem\.bias|pwconv1\.bias|downsample\.0\.bias"
ROBUST_DEAD = {
    "dw": INNER_NORMS,
    "inverted_dw": INNER_NORMS + r"|stages\.[012]\..*(conv_dw|pwconv2|downsample\.1)\.bias",
    "up_inverted_dw": r"conv_dw\.bias|downsample\.0\.bias",
    "down_inverted_dw": INNER_NORMS + r"|stages\.[012]\..*(conv_dw|downsample\.1)\.bias",
}

EVERY = (
    Case(name="small_cnn", size=32, odd=37),
    Case(name="small_vit", args={"depth": 2}, size=32, odd=36),
    *(
        Case(name=f"robust_resnet_{kind}_small", args=TINY_ROBUST, odd=80, dead=dead)
        for kind, dead in ROBUST_DEAD.items()
    ),
    Case(name="resnet18_gelu", args=TINY_RESNET),
    Case(name="resnet50_gelu", args=TINY_RESNET),
    Case(name="resnet50", args=TINY_RESNET),
    Case(name="deit_mini_patch16_224", args=TINY_VIT, odd=48),
    Case(name="deit_mini_zeroinit_patch16_224", args=TINY_VIT, odd=48, slow_start=True),
    Case(name="deit_mini_distilled_patch16_224", args=TINY_VIT, odd=48),
    Case(name="deit_small_patch16_224", args=TINY_VIT, odd=48),
    Case(name="hybrid_deit_mini", args=TINY_VIT),
    Case(name="hybrid_deit_mini", args={**TINY_VIT, "hybrid_stage": "layer3"}),
    Case(name="convnext_tiny", args={"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
    Case(name="swin_tiny_patch4_window7_224", args=TINY_SWIN, odd=36),
    # what its token mixer gets is only compared with the mean around it
    Case(name="poolformer_s12", stage_blocks=1, dead=r"norm1\.bias"),
)
# registered under several names, one piece of code
KIN = {
    **{
        f"deit_{size}_zeroinit_patch16_224": "deit_mini_zeroinit_patch16_224"
        for size in ("tiny", "small", "base")
    },
    "deit_mid_patch16_224": "deit_mini_patch16_224",
    "resnet101_gelu": "resnet50_gelu",
    **{
        f"robust_resnet_{kind}_base": f"robust_resnet_{kind}_small"
        for kind in ("dw", "inverted_dw", "up_inverted_dw", "down_inverted_dw")
    },
}


def label(case: Case) -> str:
    """The test's id."""
    return f"{case.name}-{case.args['hybrid_stage']}" if "hybrid_stage" in case.args else case.name


def build(
    case: Case, *, size: int = 0, seed: int = 0, native_norm: bool = True, drop_path: float = 0.0
) -> PixelModel:
    """The reduced model at `size` (default the case's), in train mode; equal seeds, equal weights."""
    torch.manual_seed(seed)
    model = create_model(
        case.name,
        num_classes=NUM_CLASSES,
        image_size=size or case.size,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        native_norm=native_norm,
        drop_path=drop_path,
        **case.args,
    )
    if case.stage_blocks:
        for stage in model.backbone.stages:
            stage.blocks = stage.blocks[: case.stage_blocks]
    return model.train()


def batch(size: int, number: int = 4) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(number, 3, size, size, generator=generator), torch.arange(number) % NUM_CLASSES


def backward(model: nn.Module, image: Tensor, target: Tensor, *, bf16: bool = False) -> Tensor:
    """Logits in float32, the gradients left in `.grad`; in bf16 under autocast, as the training loop has it."""
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits: Tensor = model(image)
    logits = logits.float()
    F.cross_entropy(logits, target, label_smoothing=0.1).backward()
    return logits.detach()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| over |theirs|, Euclidean; nan where either is."""
    return float((ours - theirs).norm() / theirs.norm())
