"""The four published Robust-ResNets: counts, names, shapes, and each block against its formula written out."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from models.catalogue import count_macs
from models.robust_resnet import RobustResNet

KINDS = ("dw", "inverted_dw", "up_inverted_dw", "down_inverted_dw")
State = dict[str, Tensor]


def small(kind: str, **settings: Any) -> RobustResNet:
    """Five blocks, eight to 64 channels wide."""
    torch.manual_seed(0)
    settings = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "num_classes": 10} | settings
    model = timm.create_model(f"robust_resnet_{kind}_small", **settings)
    assert isinstance(model, RobustResNet)
    return model


def lively(model: RobustResNet) -> RobustResNet:
    """Weights, norms and running statistics of ordinary size; fresh ones make nearly constant outputs."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape) + 0.2)
    return model


def on_meta(name: str, **settings: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **settings)
    return model


PUBLISHED = [  # kind, parameters, GMACs, entries of the state dict, parameters with layer scale
    ("dw", 38_558_440, 4.47, 274, 38_590_312),
    ("inverted_dw", 33_618_088, 4.57, 289, 33_626_824),
    ("up_inverted_dw", 34_432_552, 4.42, 289, 34_441_288),
    ("down_inverted_dw", 34_316_776, 4.53, 307, 34_325_896),
]


@pytest.mark.parametrize(("kind", "parameters", "gmacs", "entries", "with_gamma"), PUBLISHED)
def test_counts(kind: str, parameters: int, gmacs: float, entries: int, with_gamma: int) -> None:
    model = on_meta(f"robust_resnet_{kind}_small")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    macs = count_macs(model, (3, 224, 224))
    assert macs == pytest.approx(gmacs * 1e9, rel=0.005)
    scaled = on_meta(f"robust_resnet_{kind}_small", layer_scale_init_value=1e-6)
    assert sum(p.numel() for p in scaled.parameters()) == with_gamma


def expected_names(kind: str) -> set[str]:
    """Names of the published file, written out from the four block diagrams."""
    layers, norm = {
        "dw": (["pwconv1", "conv_dw", "pwconv2"], "norm1"),
        "inverted_dw": (["pwconv1", "conv_dw", "pwconv2"], "norm1"),
        "up_inverted_dw": (["conv_dw", "pwconv1", "pwconv2"], "norm1"),
        "down_inverted_dw": (["pwconv1", "pwconv2", "conv_dw"], "norm2"),
    }[kind]
    depths, shortcuts = {
        "dw": ((3, 4, 12, 3), {(0, 0), (1, 0), (2, 0), (3, 0)}),
        "inverted_dw": ((3, 4, 14, 3), {(1, 0), (2, 0), (3, 0)}),
        "up_inverted_dw": ((3, 4, 14, 3), {(1, 0), (2, 0), (3, 0)}),
        "down_inverted_dw": ((3, 4, 15, 3), {(1, 0), (2, 0), (2, 14), (3, 0)}),
    }[kind]
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"stem.weight", "stem.bias", "head.fc.weight", "head.fc.bias"}
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = f"stages.{stage}.blocks.{index}"
            convs, norms = [f"{block}.{layer}" for layer in layers], [f"{block}.{norm}"]
            if (stage, index) in shortcuts:
                convs.append(f"{block}.downsample.0")
                norms.append(f"{block}.downsample.1")
            names |= {f"{conv}.{part}" for conv in convs for part in ("weight", "bias")}
            names |= {f"{layer}.{part}" for layer in norms for part in statistics}
    return names


SHAPES = {
    "dw": {
        "stages.0.blocks.0.pwconv1.weight": (96, 96, 1, 1),
        "stages.0.blocks.1.pwconv1.weight": (96, 384, 1, 1),
        "stages.0.blocks.0.conv_dw.weight": (96, 1, 11, 11),
        "stages.3.blocks.2.pwconv2.weight": (3072, 768, 1, 1),
        "stages.0.blocks.0.downsample.0.weight": (384, 96, 1, 1),
        "stages.3.blocks.0.downsample.0.weight": (3072, 1536, 1, 1),
        "stages.2.blocks.0.norm1.running_var": (384,),
        "head.fc.weight": (1000, 3072),
    },
    "inverted_dw": {
        "stages.1.blocks.0.pwconv1.weight": (768, 96, 1, 1),
        "stages.1.blocks.0.conv_dw.weight": (768, 1, 7, 7),
        "stages.1.blocks.0.norm1.weight": (768,),
        "stages.1.blocks.0.pwconv2.weight": (192, 768, 1, 1),
        "stages.1.blocks.0.downsample.0.weight": (192, 96, 1, 1),
        "head.fc.weight": (1000, 768),
    },
    "up_inverted_dw": {
        "stages.1.blocks.0.conv_dw.weight": (192, 1, 11, 11),
        "stages.1.blocks.0.norm1.weight": (192,),
        "stages.1.blocks.0.pwconv1.weight": (768, 192, 1, 1),
        "stages.1.blocks.0.pwconv2.weight": (192, 768, 1, 1),
        "head.fc.weight": (1000, 768),
    },
    "down_inverted_dw": {
        "stages.1.blocks.0.pwconv1.weight": (768, 96, 1, 1),
        "stages.1.blocks.0.norm2.weight": (768,),
        "stages.1.blocks.0.conv_dw.weight": (192, 1, 11, 11),
        "stages.2.blocks.14.downsample.0.weight": (384, 384, 1, 1),
        "stages.3.blocks.0.downsample.0.weight": (768, 384, 1, 1),
        "head.fc.weight": (1000, 768),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_are_those_of_the_published_files(kind: str) -> None:
    state = on_meta(f"robust_resnet_{kind}_small").state_dict()
    assert set(state) == expected_names(kind)
    assert tuple(state["stem.weight"].shape) == (96, 3, 16, 16)
    assert {name: tuple(state[name].shape) for name in SHAPES[kind]} == SHAPES[kind]


# The reference: what the block diagrams say, on a state dict, with nothing of the models' code.


def conv(state: State, name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    depth_wise = name.endswith("conv_dw")
    padding, groups = (weight.shape[-1] // 2, x.shape[1]) if depth_wise else (0, 1)
    return F.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"][:, None, None], state[f"{name}.running_var"][:, None, None]
    normed = (x - mean) / (var + 1e-5).sqrt()
    return normed * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def reference_branch(kind: str, state: State, block: str, x: Tensor, s: int) -> Tensor:
    if kind == "dw":
        x = norm(state, f"{block}.norm1", conv(state, f"{block}.pwconv1", x))
        return conv(state, f"{block}.pwconv2", conv(state, f"{block}.conv_dw", x, stride=s))
    if kind == "inverted_dw":
        x = F.relu(norm(state, f"{block}.norm1", conv(state, f"{block}.pwconv1", x)))
        return conv(state, f"{block}.pwconv2", conv(state, f"{block}.conv_dw", x, stride=s))
    if kind == "up_inverted_dw":
        x = norm(state, f"{block}.norm1", conv(state, f"{block}.conv_dw", x, stride=s))
        return conv(state, f"{block}.pwconv2", F.relu(conv(state, f"{block}.pwconv1", x)))
    x = F.relu(norm(state, f"{block}.norm2", conv(state, f"{block}.pwconv1", x)))
    return conv(state, f"{block}.conv_dw", conv(state, f"{block}.pwconv2", x), stride=s)


def reference(kind: str, state: State, image: Tensor, depths: tuple[int, ...]) -> list[Tensor]:
    """Outputs of the stages, then the logits."""
    weight, bias = state["stem.weight"], state["stem.bias"]
    x = F.conv2d(image, weight, bias, stride=16)
    outputs = []
    strided = (2, depths[2] - 1) if kind == "down_inverted_dw" else (3, 0)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block, stride = f"stages.{stage}.blocks.{index}", 2 if (stage, index) == strided else 1
            out = reference_branch(kind, state, block, x, stride)
            if f"{block}.gamma" in state:
                out = out * state[f"{block}.gamma"][:, None, None]
            if f"{block}.downsample.0.weight" in state:
                x = norm(
                    state, f"{block}.downsample.1", conv(state, f"{block}.downsample.0", x, stride=stride)
                )
            x = F.relu(out + x) if kind == "dw" else out + x
        outputs.append(x)
    return [*outputs, F.linear(x.mean((2, 3)), state["head.fc.weight"], state["head.fc.bias"])]


@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_the_formula(kind: str, layer_scale: float) -> None:
    depths = (2, 1, 3, 2)
    model = lively(small(kind, depths=depths, layer_scale_init_value=layer_scale)).eval()
    image = torch.randn(2, 3, 96, 112)
    *stages, logits = reference(kind, model.state_dict(), image, depths)
    with torch.no_grad():
        torch.testing.assert_close(model(image), logits, rtol=1e-4, atol=1e-4)
        x = model.stem(image)
        for stage, expected in zip(model.stages, stages, strict=True):
            x = stage(x)
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert logits.std(0).mean() > 1e-3, "the images differ"


STAGES_224 = {
    "dw": [(384, 14), (768, 14), (1536, 14), (3072, 7)],
    "inverted_dw": [(96, 14), (192, 14), (384, 14), (768, 7)],
    "up_inverted_dw": [(96, 14), (192, 14), (384, 14), (768, 7)],
    "down_inverted_dw": [(96, 14), (192, 14), (384, 7), (768, 7)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_only(kind: str) -> None:
    model = on_meta(f"robust_resnet_{kind}_small", features_only=True)
    outputs = model(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(x.shape) for x in outputs] == [(1, c, size, size) for c, size in STAGES_224[kind]]
    assert model.feature_info.channels() == [c for c, _ in STAGES_224[kind]]
    assert model.feature_info.reduction() == [224 // size for _, size in STAGES_224[kind]]
    some = on_meta(f"robust_resnet_{kind}_small", features_only=True, out_indices=(1, 3))
    assert some.feature_info.channels() == [STAGES_224[kind][1][0], STAGES_224[kind][3][0]]
