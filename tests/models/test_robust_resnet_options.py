"""The design space of Robust-ResNet: patches, strides, kernels, positions of norms and acts, sizes, bad options."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401  (registers the models)
from models.catalogue import count_macs
from models.registry import create_model
from models.robust_block import KINDS, RobustBlock
from models.robust_resnet import RobustResNet

TINY = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}
ALL_NORMS, ALL_ACTS = ("norm1", "norm2", "norm3"), ("act1", "act2", "act3")


def small(kind: str, **settings: Any) -> RobustResNet:
    torch.manual_seed(0)
    model = timm.create_model(f"robust_resnet_{kind}_small", **(TINY | {"num_classes": 10} | settings))
    assert isinstance(model, RobustResNet)
    return model


def run(model: RobustResNet, size: int = 64) -> None:
    """Forward and backward; every parameter takes part."""
    image = torch.rand(2, 3, size, size)
    logits = model.train()(image)
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "patch_size", "reductions"),
    [
        ("dw", 16, [16, 16, 16, 32]),
        ("dw", 8, [8, 8, 16, 32]),
        ("dw", 4, [4, 8, 16, 32]),
        ("inverted_dw", 4, [4, 8, 16, 32]),
        ("up_inverted_dw", 8, [8, 8, 16, 32]),
        ("down_inverted_dw", 16, [16, 16, 32, 32]),  # at the end of the stage before
        ("down_inverted_dw", 8, [8, 16, 32, 32]),
        ("down_inverted_dw", 4, [8, 16, 32, 32]),
    ],
)
def test_patch_size_keeps_the_total_stride(kind: str, patch_size: int, reductions: list[int]) -> None:
    model = small(kind, patch_size=patch_size)
    assert model.stem.weight.shape == (8, 3, patch_size, patch_size)
    assert [info["reduction"] for info in model.feature_info] == reductions
    with torch.no_grad():
        x = model.stem(torch.rand(2, 3, 64, 64))
        assert x.shape[-1] == 64 // patch_size
        for stage, reduction in zip(model.stages, reductions, strict=True):
            x = stage(x)
            assert x.shape[-1] == 64 // reduction
    run(model)


def test_stride_stages_can_be_chosen() -> None:
    model = small("dw", stride_stages=[0, 2])
    assert [info["reduction"] for info in model.feature_info] == [32, 32, 64, 64]
    assert model.stages[2].blocks[0].conv_dw.stride == (2, 2)
    assert model.stages[2].blocks[1].conv_dw.stride == (1, 1)
    last = small("down_inverted_dw", stride_stages=[2])
    assert [block.conv_dw.stride for block in last.stages[2].blocks] == [(1, 1), (2, 2)]


def test_a_smaller_patch_costs_more() -> None:
    def macs(**settings: Any) -> int:
        with torch.device("meta"):
            found = count_macs(timm.create_model("robust_resnet_dw_small", **settings), (3, 224, 224))
        assert found is not None
        return found

    assert [round(macs(patch_size=size) / 1e9, 1) for size in (16, 8, 4)] == [4.5, 5.7, 6.5]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel_size", [3, 13, 31])
def test_kernel_size(kind: str, kernel_size: int) -> None:
    model = small(kind, kernel_size=kernel_size)
    assert model.stages[0].blocks[0].conv_dw.weight.shape[2:] == (kernel_size, kernel_size)
    assert model.forward_features(torch.rand(1, 3, 96, 96)).shape[2:] == (3, 3)
    run(model)


def test_replicated_border() -> None:
    zeros, copies = small("dw").eval(), small("dw", padding_mode="replicate").eval()
    copies.load_state_dict(zeros.state_dict())
    image = torch.rand(2, 3, 64, 64)
    assert not torch.equal(zeros(image), copies(image))
    run(copies)


# The layers of a block in order, all positions taken; "+" is the addition.
FULL = {
    "dw": "pwconv1 norm1 act1 conv_dw norm2 act2 pwconv2 norm3 + act3",
    "inverted_dw": "pwconv1 norm1 act1 conv_dw norm2 act2 pwconv2 norm3 + act3",
    "up_inverted_dw": "conv_dw norm1 act1 pwconv1 norm2 act2 pwconv2 norm3 + act3",
    "down_inverted_dw": "pwconv1 norm2 act2 pwconv2 norm3 act3 conv_dw norm1 + act1",
}


def order_of(block: RobustBlock) -> str:
    """The names of the block's layers in the order in which a forward pass calls them."""
    called: list[str] = []
    for name, child in block.named_children():
        shown = "+" if name == "downsample" else name  # the shortcut is read when the branch is complete
        child.register_forward_hook(lambda *_, shown=shown: called.append(shown))
    block(torch.rand(2, 8, 4, 4))
    return " ".join(name for name in called if name != "drop_path")


@pytest.mark.parametrize("kind", KINDS)
def test_all_positions(kind: str) -> None:
    model = small(kind, norms=ALL_NORMS, acts=ALL_ACTS)
    for stage in model.stages:
        for block in stage.blocks:
            assert {name for name, _ in block.named_children()} >= {*ALL_NORMS, *ALL_ACTS}
    assert order_of(model.stages[0].blocks[0]) == FULL[kind]
    run(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ALL_NORMS + ALL_ACTS)
def test_one_position_alone(kind: str, position: str) -> None:
    norms, acts = ([position], []) if position in ALL_NORMS else ([], [position])
    model = small(kind, norms=norms, acts=acts)
    words = [word for word in FULL[kind].split() if word[0] not in "na" or word == position]
    assert order_of(model.stages[0].blocks[0]) == " ".join(words)
    assert sum(
        isinstance(m, nn.BatchNorm2d) for b in model.stages[2].blocks for m in b.children()
    ) == 2 * len(norms)
    run(model)


@pytest.mark.parametrize("kind", KINDS)
def test_no_norm_in_any_branch(kind: str) -> None:
    model = small(kind, norms=(), acts=())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(name.endswith("downsample.1") for name in names)
    run(model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_positions_by_name(kind: str) -> None:
    chosen = small(kind, norms=list(KINDS[kind].norms), acts=list(KINDS[kind].acts))
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(chosen.eval()(image), small(kind).eval()(image))


@pytest.mark.parametrize("act_layer", ["gelu", "silu", "prelu"])
def test_act_layer(act_layer: str) -> None:
    for kind in KINDS:
        run(small(kind, act_layer=act_layer, acts=ALL_ACTS))


def test_mlp_ratio_and_widths() -> None:
    model = small("dw", mlp_ratio=2.5, dims=(8, 12, 20, 30), depths=(2, 1, 1, 1))
    assert [info["num_chs"] for info in model.feature_info] == [20, 30, 50, 75]
    run(model)


DEIT_BASE_MACS = 17.56e9


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("dw", 116_438_504),
        ("inverted_dw", 107_098_344),
        ("up_inverted_dw", 110_089_448),
        ("down_inverted_dw", 109_907_432),
    ],
)
def test_base_costs_as_much_as_deit_base(kind: str, parameters: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"robust_resnet_{kind}_base")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert count_macs(model, (3, 224, 224)) == pytest.approx(DEIT_BASE_MACS, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 4}, "kernel_size 4 must be an odd number from 3 to 31; try 7 or 11"),
        ({"kernel_size": 33}, "kernel_size 33 must be an odd number"),
        ({"kernel_size": 7.0}, "kernel_size 7.0 must be an odd number"),
        ({"patch_size": 5}, "patch_size 5 must be 4, 8 or 16 pixels"),
        ({"stride_stages": [4]}, r"stride_stages \[4\] must be different stages from 0 to 3"),
        ({"stride_stages": [3, 3]}, r"stride_stages \[3, 3\] must be different"),
        ({"padding_mode": "reflect"}, "unknown padding_mode 'reflect'; use zeros or replicate"),
        (
            {"norms": ["norm4"]},
            "unknown position 'norm4' in norms; in dw blocks there are, in order, norm1, norm2",
        ),
        ({"acts": ["norm1"]}, "unknown position 'norm1' in acts"),
        ({"acts": ["act1", "act1"]}, "names a position twice"),
        ({"acts": "act1"}, "acts 'act1' must be a list of positions or 'published'"),
        ({"act_layer": "rely"}, "unknown act_layer 'rely'"),
        ({"depths": (3, 4, 12)}, r"depths \[3, 4, 12\] must hold 4 numbers from 1 up, one per stage"),
        ({"depths": (3, 4, 0, 3)}, r"depths \[3, 4, 0, 3\] must hold 4 numbers from 1 up"),
        ({"dims": (96, 192)}, r"dims \[96, 192\] must hold 4 numbers"),
        ({"block": "up_inverted_dw", "dims": (8, 12, 24, 48)}, "cannot make 12 channels of 8"),
        ({"block": "dww"}, "unknown block 'dww'; use one of dw, inverted_dw"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 must be above 0"),
        ({"layer_scale_init_value": -1.0}, "layer_scale_init_value -1.0 must not be below 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0 must be from 0 to below 1"),
        ({"kernel": 7}, "has no setting 'kernel'"),
    ],
)
def test_bad_options_are_one_line(settings: dict[str, Any], message: str) -> None:
    drop_path = settings.pop("drop_path_rate", 0.0)
    with pytest.raises(ValueError, match=message) as caught:
        create_model(
            "robust_resnet_dw_small",
            num_classes=10,
            image_size=64,
            mean=[0.5] * 3,
            std=[0.5] * 3,
            drop_path=drop_path,
            **settings,
        )
    assert "\n" not in str(caught.value)
