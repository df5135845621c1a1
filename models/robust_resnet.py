"""Robust-ResNet: CNNs with the three traits that Wang et al. found to make transformers robust out of distribution.

"Can CNNs be more robust than transformers?" (Wang, Bai, Zhou, Xie; ICLR 2023, arXiv:2206.03452): a patchify stem,
large depth-wise kernels, one activation and one normalisation per block (models/robust_block.py). The four
`_small` models have the parameter names of the published weight files. What the paper varies is a setting here:
`patch_size`, `kernel_size`, `norms`, `acts`, `depths`, `dims`.

The `_base` models are this file's own: dims 4/3 as large, and as many blocks in the third stage as bring the
multiply-adds nearest to DeiT-Base (17.6 G), as those of the small ones are near DeiT-Small (4.6 G).
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint as timm_checkpoint
from torch import Tensor, nn

from models.recompute import Checkpoint, recompute_blocks
from models.robust_block import KINDS, BlockOptions, PaddingMode, RobustBlock

STRIDE_STAGES = {4: (1, 2, 3), 8: (2, 3), 16: (3,)}  # by patch size; the total stride is 32 in each

DIMS = {"small": (96, 192, 384, 768), "base": (128, 256, 512, 1024)}
# by kind of block: kernel, and the blocks of the third stage
VARIANTS = {
    "dw": (11, {"small": 12, "base": 35}),
    "inverted_dw": (7, {"small": 14, "base": 36}),  # 11 made it unstable, say the authors
    "up_inverted_dw": (11, {"small": 14, "base": 37}),
    "down_inverted_dw": (11, {"small": 15, "base": 38}),
}
SETTINGS: dict[str, dict[str, Any]] = {
    f"robust_resnet_{kind}_{size}": {
        "block": kind,
        "kernel_size": kernel,
        "depths": (3, 4, depths[size], 3),
        "dims": DIMS[size],
    }
    for size in DIMS
    for kind, (kernel, depths) in VARIANTS.items()
}

default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "stem",
            "classifier": "head.fc",
            "paper_ids": "arXiv:2206.03452",
        }
        for name in SETTINGS
    }
)


class Stage(nn.Module):
    """Blocks of one width, the first or the last of them (as the kind has it) with the stage's stride."""

    def __init__(
        self, width_in: int, dim: int, options: BlockOptions, *, stride: int, drop_paths: Sequence[float]
    ) -> None:
        super().__init__()
        strided = len(drop_paths) - 1 if KINDS[options.kind].strides_at_end else 0
        blocks = []
        for index, drop_path in enumerate(drop_paths):
            block_stride = stride if index == strided else 1
            blocks.append(RobustBlock(width_in, dim, options, stride=block_stride, drop_path=drop_path))
            width_in = options.width_out(dim)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class RobustResNet(nn.Module):
    """image (N,C,H,W) -> logits (N,K); H and W from `patch_size` up.

    `stem` is one convolution of non-overlapping patches (4, 8 or 16 pixels); what is left of an image after its
    last whole patch does not count, so let the size be a multiple. Stages are halved so that the whole has stride
    32: the last one with patch 16, the last two with 8, three with 4. down_inverted_dw halves at the end of the
    stage before instead. `stride_stages` (from 0) chooses other ones. With the same depths
    a smaller patch costs more: robust_resnet_dw_small 4.5, 5.7 and 6.5 G with 16, 8 and 4.

    `depths` and `dims` have a number for each stage. `norms` and `acts` list positions within a block (see
    models/robust_block.py), or are "published"; the norm of the shortcut stays. `layer_scale_init_value` 0, as
    published, means no layer scale. Drop path grows linearly over all blocks from 0 to `drop_path_rate`.
    ValueError for settings that no model can have.
    """

    def __init__(
        self,
        *,
        block: str = "dw",
        depths: Sequence[int] = (3, 4, 12, 3),
        dims: Sequence[int] = DIMS["small"],
        patch_size: int = 16,
        stride_stages: Sequence[int] = (),
        kernel_size: int = 11,
        padding_mode: PaddingMode = "zeros",
        norms: Sequence[str] | str = "published",
        acts: Sequence[str] | str = "published",
        act_layer: str = "relu",
        mlp_ratio: float = 4.0,
        layer_scale_init_value: float = 0.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        options = BlockOptions(
            kind=block,
            kernel_size=kernel_size,
            padding_mode=padding_mode,
            norms=_positions(block, "norms", norms),
            acts=_positions(block, "acts", acts),
            act_layer=act_layer,
            mlp_ratio=mlp_ratio,
            layer_scale_init_value=layer_scale_init_value,
        )
        _check_stages(depths, dims)
        strides = _strides(patch_size, stride_stages, at_end=KINDS[block].strides_at_end)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.patch_size = patch_size
        self.feature_info: list[dict[str, Any]] = []
        self.stem = nn.Conv2d(in_chans, dims[0], patch_size, stride=patch_size)
        stages = []
        width, reduction = dims[0], patch_size
        drop_paths = _drop_path_rates(drop_path_rate, depths)
        for index, (dim, stride) in enumerate(zip(dims, strides, strict=True)):
            stages.append(Stage(width, dim, options, stride=stride, drop_paths=drop_paths[index]))
            width, reduction = options.width_out(dim), reduction * stride
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.num_features = width
        self.head = ClassifierHead(width, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        self.apply(_initialise)

    def forward_features(self, image: Tensor) -> Tensor:
        """image (N,C,H,W) -> features (N,num_features,H/32,W/32)."""
        height, width = image.shape[-2:]
        if min(height, width) < self.patch_size:
            raise ValueError(f"image of {height}x{width} is smaller than a patch of {self.patch_size} pixels")
        features: Tensor = self.stages(self.stem(image))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """features (N,num_features,h,w) -> logits (N,K), or the pooled features before the classifier."""
        out: Tensor = self.head(features, pre_logits=pre_logits)
        return out

    def forward(self, image: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(image))

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained classifier; 0 classes for none. `global_pool` as in timm, None leaves it."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True, checkpoint: Checkpoint = timm_checkpoint) -> None:
        """timm's name for models.recompute.recompute_blocks."""
        recompute_blocks(self, checkpoint if enable else None)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns of layers, for a learning rate that falls with depth: by block, or by stage if coarse."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"}


def _initialise(module: nn.Module) -> None:
    # BatchNorm starts as 1 and 0 by itself, the classifier as torch's Linear
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution has one


def _positions(block: str, option: str, chosen: Sequence[str] | str) -> tuple[str, ...]:
    if chosen == "published":
        kind = KINDS.get(block, KINDS["dw"])  # an unknown one is refused with the other options
        return kind.norms if option == "norms" else kind.acts
    if isinstance(chosen, str):
        raise ValueError(f"{option} {chosen!r} must be a list of positions or 'published'; try [{chosen}]")
    return tuple(chosen)


def _check_stages(depths: Sequence[int], dims: Sequence[int]) -> None:
    for name, numbers in (("depths", depths), ("dims", dims)):
        if len(numbers) != 4 or min(numbers) < 1:
            raise ValueError(f"{name} {list(numbers)} must hold 4 numbers from 1 up, one per stage")


def _strides(patch_size: int, stages: Sequence[int], *, at_end: bool) -> list[int]:
    if patch_size not in STRIDE_STAGES:
        raise ValueError(f"patch_size {patch_size!r} must be 4, 8 or 16 pixels; published models have 16")
    if len(set(stages)) != len(stages) or not set(stages) <= {0, 1, 2, 3}:
        raise ValueError(f"stride_stages {list(stages)} must be different stages from 0 to 3, or empty")
    chosen = stages or [stage - at_end for stage in STRIDE_STAGES[patch_size]]
    return [2 if stage in chosen else 1 for stage in range(4)]


def _drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate {rate} must be from 0 to below 1; the published models have 0.1")
    last = max(sum(depths) - 1, 1)
    rates = (rate * index / last for index in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _register(name: str) -> None:
    """Makes `name` known to timm.create_model, with its line of SETTINGS as defaults."""

    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise ValueError(f"{name} has no weights that can be fetched; load a downloaded file instead")
        settings = SETTINGS[name] | kwargs
        feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
        model: nn.Module = build_model_with_cfg(
            RobustResNet, name, False, feature_cfg=feature_cfg, **settings
        )
        return model

    make.__name__ = make.__qualname__ = name
    register_model(make)


for _name in SETTINGS:
    _register(_name)
