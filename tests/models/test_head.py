"""Training the classifier alone: what has a gradient, what stays in which mode, what is refused."""

import copy

import pytest
import torch
from torch import nn

from models.head import classifiers, train_head_only
from models.pixel import PixelModel
from models.registry import create_model


def model(name: str = "small_cnn", **extra: object) -> PixelModel:
    return create_model(
        name, num_classes=5, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, drop_path=0.5, **extra
    )


@pytest.mark.parametrize(
    ("name", "heads"),
    [("small_cnn", ["head"]), ("small_vit", ["head"]), ("robust_resnet_dw_small", ["head.fc"])],
)
def test_the_classifier_is_found(name: str, heads: list[str]) -> None:
    with torch.device("meta"):
        net = model(name)
    names = {id(module): n for n, module in net.backbone.named_modules()}
    assert [names[id(head)] for head in classifiers(net)] == heads


def test_a_model_without_one_is_refused() -> None:
    net = model()
    net.backbone.head = nn.Identity()
    with pytest.raises(ValueError, match="'small_cnn' does not say which part is its classifier"):
        train_head_only(net)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit"])
def test_nothing_but_the_classifier_moves(name: str) -> None:
    net = model(name)
    train_head_only(net)
    net.train()
    assert net.training
    modes = {n for n, module in net.named_modules() if module.training}
    assert modes == {"", "backbone.head"}
    before = copy.deepcopy(net.state_dict())
    image = torch.rand(8, 3, 32, 32)
    logits = net(image)
    logits.square().mean().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        "backbone.head.weight",
        "backbone.head.bias",
    }
    # Running statistics stay, and drop-path is off: the same features twice.
    assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items())
    assert torch.equal(net(image), logits)
    net.eval()
    assert not any(module.training for module in net.modules())


def test_a_copy_is_as_frozen() -> None:
    net = model()
    train_head_only(net)
    twin = copy.deepcopy(net).train()
    assert {n for n, module in twin.named_modules() if module.training} == {"", "backbone.head"}


def test_an_image_has_a_gradient_all_the_same() -> None:
    """A linear probe may be trained on attacked images."""
    net = model()
    train_head_only(net)
    image = torch.rand(2, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image).sum(), image)
    assert gradient.abs().sum() > 0
