"""Robust-ResNets in use: timm's interface, sizes, training, checkpointing, memory formats, conversions."""

import copy
import pickle
import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import models  # noqa: F401  (registers the models)
from models.registry import create_model, list_models
from models.robust_resnet import SETTINGS, RobustResNet

KINDS = ("dw", "inverted_dw", "up_inverted_dw", "down_inverted_dw")
TINY = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}


def small(kind: str, **settings: Any) -> RobustResNet:
    torch.manual_seed(0)
    model = timm.create_model(f"robust_resnet_{kind}_small", **(TINY | {"num_classes": 10} | settings))
    assert isinstance(model, RobustResNet)
    return model


def lively(model: RobustResNet) -> RobustResNet:
    """Convolutions that keep the signal's size, so that logits differ between images."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model


def gradients(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(image), torch.arange(len(image)) % 10).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_all_are_registered_with_a_default_configuration() -> None:
    assert set(SETTINGS) == {f"robust_resnet_{kind}_{size}" for kind in KINDS for size in ("small", "base")}
    assert set(list_models("robust_resnet_*")) == set(SETTINGS)
    for name in SETTINGS:
        config = timm.get_pretrained_cfg(name)
        assert (config.input_size, config.crop_pct, config.interpolation) == ((3, 224, 224), 0.875, "bicubic")
        assert (config.first_conv, config.classifier) == ("stem", "head.fc")
        with pytest.raises(ValueError, match="no weights that can be fetched"):
            timm.create_model(name, pretrained=True)


def test_initial_weights() -> None:
    """Kaiming normal by fan out, which counts a depth-wise kernel as if it were dense; biases 0; norms 1 and 0."""
    model = small("up_inverted_dw", dims=(64, 128, 128, 128), num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            assert not module.bias.any()
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert (module.weight == 1).all()
            assert not module.bias.any()
    classifier = model.get_classifier()
    assert float(classifier.weight.detach().abs().max()) == pytest.approx(
        128**-0.5, rel=0.01
    )  # torch's Linear
    assert classifier.bias.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("height", "width", "last"), [(160, 160, (5, 5)), (225, 225, (7, 7)), (37, 81, (1, 3))]
)
def test_any_size(kind: str, height: int, width: int, last: tuple[int, int]) -> None:
    """What is left after the last whole patch does not count; an odd map is halved rounding up."""
    model = lively(small(kind)).eval()
    image = torch.rand(2, 3, height, width)
    assert model.forward_features(image).shape[2:] == last
    whole = image[:, :, : height // 16 * 16, : width // 16 * 16]
    assert torch.equal(model(image), model(whole))
    assert all(len(g) for g in gradients(model.train(), image).values())


def test_an_image_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="image of 15x32 is smaller than a patch of 16 pixels"):
        small("dw")(torch.rand(1, 3, 15, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_grows_from_the_first_block_to_the_last(kind: str) -> None:
    model = small(kind, drop_path_rate=0.1)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [b.drop_path.drop_prob if isinstance(b.drop_path, DropPath) else 0.0 for b in blocks]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    half = lively(small(kind, drop_path_rate=0.5))
    image = torch.rand(8, 3, 32, 32)
    assert not torch.equal(half.train()(image), half(image))
    assert torch.equal(half.eval()(image), half(image))


def test_classifier_can_be_replaced_and_removed() -> None:
    model = small("dw", in_chans=1, drop_rate=0.5).eval()
    image = torch.rand(2, 1, 32, 32)
    features = model.forward_features(image)
    assert features.shape == (2, 256, 1, 1)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    assert torch.equal(model.forward_head(features), model(image))
    model.reset_classifier(7)
    assert model(image).shape == (2, 7) == (2, model.num_classes)
    assert model.get_classifier().weight.shape == (7, 256)
    model.reset_classifier(5, global_pool="catavgmax")
    assert model(image).shape == (2, 5)
    assert model.head_hidden_size == 512
    model.reset_classifier(0, global_pool="avg")
    assert torch.equal(model(image), features.mean((2, 3)))
    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(image), features)
    assert small("dw", num_classes=0)(torch.rand(2, 3, 32, 32)).shape == (2, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient_and_no_running_statistic(kind: str) -> None:
    plain = lively(small(kind, drop_path_rate=0.3)).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    image = torch.rand(4, 3, 64, 64)
    torch.manual_seed(1)
    expected = gradients(plain, image)
    torch.manual_seed(1)
    found = gradients(saving, image)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for (name, ours), theirs in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    saving.set_grad_checkpointing(False)
    assert torch.equal(saving.eval()(image), plain.eval()(image))


def test_checkpointing_recomputes() -> None:
    model = small("dw").train()
    seen = []
    model.stages[2].blocks[0].pwconv1.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model.set_grad_checkpointing()
    gradients(model, torch.rand(4, 3, 64, 64))
    assert len(seen) == 2
    model.set_grad_checkpointing(False)
    gradients(model, torch.rand(4, 3, 64, 64))
    assert len(seen) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(kind: str) -> None:
    plain = lively(small(kind)).double()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    image = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    expected = gradients(plain, image)
    found = gradients(last, image.to(memory_format=torch.channels_last))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dict(kind: str) -> None:
    model = lively(small(kind, layer_scale_init_value=0.1)).train()
    image = torch.rand(4, 3, 64, 64)
    model(image)  # moves the running statistics
    other = small(kind, layer_scale_init_value=0.2)
    other.load_state_dict(model.state_dict())
    expected = model.eval()(image)
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.eval()(image), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_logits_do_not_depend_on_the_batch(kind: str) -> None:
    model = lively(small(kind)).eval()
    image = torch.rand(6, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[2:3], model(image[2:3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ghost_statistics(kind: str) -> None:
    """A ghost batch of 4 twice the same 2 images has the statistics of those 2."""
    settings: dict[str, Any] = {
        "num_classes": 10,
        "image_size": 64,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    } | TINY
    torch.manual_seed(0)
    ghost = create_model(f"robust_resnet_{kind}_small", norm_stats="ghost:2", **settings).train()
    plain = create_model(f"robust_resnet_{kind}_small", **settings).train()
    plain.load_state_dict(ghost.state_dict())
    image = torch.rand(4, 3, 64, 64)
    expected = torch.cat([plain(image[:2]), plain(image[2:])])
    torch.testing.assert_close(ghost(image), expected, rtol=1e-4, atol=1e-5)


# Parameters whose gradient is rounding error, because a BatchNorm takes a constant of a channel off again: biases
# right before one, and biases of the residual stream where every reader of it (1x1 convolutions) has one. A zero-padded
# depth-wise convolution or a ReLU as reader makes them count.
BEFORE_A_NORM = r"\.(pwconv1|downsample\.0)\.bias$"
DEAD = {
    "dw": rf"{BEFORE_A_NORM}|^stem\.bias$",
    "inverted_dw": rf"{BEFORE_A_NORM}|^stem\.bias$|^stages\.[012]\..*(conv_dw|pwconv2|downsample\.1)\.bias$",
    "up_inverted_dw": r"\.(conv_dw|downsample\.0)\.bias$",
    "down_inverted_dw": rf"{BEFORE_A_NORM}|^stem\.bias$|^stages\.[012]\..*(conv_dw|downsample\.1)\.bias$",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_changes_every_parameter_but_biases_that_a_norm_removes(kind: str) -> None:
    model = lively(small(kind, layer_scale_init_value=0.5)).double().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = gradients(model, torch.rand(8, 3, 64, 64, dtype=torch.float64))
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert set(found) == set(before)
    for name, p in model.named_parameters():
        largest = float(found[name].abs().max())
        if re.search(DEAD[kind], name):
            assert largest < 1e-12, name
        else:
            assert largest > 1e-7, name
            assert not torch.equal(p, before[name]), name


def test_learning_rate_falls_by_block() -> None:
    model = small("inverted_dw")
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == [0.5**power for power in (6, 5, 4, 3, 2, 1, 0)]  # stem, five blocks, head
    assert set(model.group_matcher(coarse=True)) == {"stem", "blocks"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_full_size_forward_and_backward(kind: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(f"robust_resnet_{kind}_small", drop_path_rate=0.1).train()
    found = gradients(model, torch.rand(1, 3, 224, 224))
    assert len(found) == len(list(model.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
