"""The two small models: shapes, sizes, counts, state dicts, and that they learn real digits."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import models  # noqa: F401  (registers the two models)
from models.pixel import PixelModel
from models.registry import create_model

NAMES = ("small_cnn", "small_vit")
PARAMETERS = {"small_cnn": 162_994, "small_vit": 311_146}


def build(name: str, image_size: int = 32, drop_path: float = 0.0) -> PixelModel:
    torch.manual_seed(0)
    return create_model(
        name, num_classes=10, image_size=image_size, mean=[0.5] * 3, std=[0.5] * 3, drop_path=drop_path
    )


@pytest.mark.parametrize("name", NAMES)
def test_registered_in_timm(name: str) -> None:
    assert timm.is_model(name)
    assert name in timm.list_models("small_*")
    assert timm.create_model(name, num_classes=7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_forward_and_backward(name: str, image_size: int) -> None:
    model = build(name, image_size, drop_path=0.1).train()
    logits = model(torch.rand(4, 3, image_size, image_size))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None) > 10


def test_cnn_takes_odd_sizes() -> None:
    assert build("small_cnn", 37).eval()(torch.rand(1, 3, 37, 37)).shape == (1, 10)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name: str) -> None:
    assert sum(p.numel() for p in build(name).parameters()) == PARAMETERS[name]


def test_no_convolution_bias_before_batchnorm() -> None:
    model = build("small_cnn")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 6
    assert all(module.bias is None for module in convolutions)


def test_vit_layernorm_eps() -> None:
    norms = [module for module in build("small_vit").modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert all(module.eps == 1e-6 for module in norms)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name: str) -> None:
    model = build(name).train()
    model(torch.rand(4, 3, 32, 32))  # moves the running statistics
    torch.manual_seed(1)
    other = create_model(name, num_classes=10, image_size=32, mean=[0.1] * 3, std=[0.3] * 3)
    assert other.load_state_dict(model.state_dict()).missing_keys == []
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(image), other.eval()(image))


@pytest.mark.parametrize("name", NAMES)
def test_eval_logits_do_not_depend_on_the_batch(name: str) -> None:
    model = build(name).eval()
    image = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[2:4], model(image[2:4]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no published weights"):
        timm.create_model(name, pretrained=True)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    image = F.interpolate(image, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    label = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return image[train], label[train], image[test], label[test]


def accuracy_after(name: str, num_epochs: int, batch: int = 64, peak_lr: float = 2e-3) -> float:
    image, label, test_image, test_label = digits()
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.05)
    num_steps = num_epochs * (len(label) // batch)
    for step in range(num_steps):
        if step % (len(label) // batch) == 0:
            order = torch.randperm(len(label))
        rows = order[step % (len(label) // batch) * batch :][:batch]
        warm_up = min(1.0, (step + 1) / 22)
        optimizer.param_groups[0]["lr"] = (
            peak_lr * warm_up * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))
        )
        optimizer.zero_grad()
        F.cross_entropy(model(image[rows]), label[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model.eval()(test_image).argmax(1) == test_label).float().mean())


def test_cnn_learns_digits_in_a_few_epochs() -> None:
    assert accuracy_after("small_cnn", 4) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_epochs", "least"), [("small_cnn", 30, 0.98), ("small_vit", 12, 0.95)])
def test_learns_digits(name: str, num_epochs: int, least: float) -> None:
    assert accuracy_after(name, num_epochs) >= least
