"""ResNets with exact GELU: torchvision's names, the published counts, and that everything learns."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from models.registry import create_model

COUNTS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "resnet101": 44_549_160}
SETTINGS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_counts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"{name}_gelu")
        reference = getattr(torchvision.models, name)()
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert round(COUNTS[name] / 1e6, 2) in (11.69, 25.56, 44.55)


def test_the_function_is_torchvisions_with_every_relu_replaced() -> None:
    torch.manual_seed(0)
    model, reference = timm.create_model("resnet50_gelu").eval(), torchvision.models.resnet50().eval()
    for module in reference.modules():
        if hasattr(module, "relu"):
            module.relu = nn.GELU()
    reference.load_state_dict(model.state_dict())
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), rtol=1e-4, atol=1e-5)


def test_gelu_is_exact_and_no_relu_is_left() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet18_gelu")
    assert not [module for module in model.modules() if isinstance(module, nn.ReLU)]
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    exact = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(model.act1(x), exact, rtol=0, atol=1e-12)


def test_start_is_the_papers() -> None:
    """Last norms of blocks begin at 1, convolutions at kaiming's normal by fan-out."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50_gelu")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    wanted = (2 / (512 * 9)) ** 0.5
    assert model.layer4[1].conv2.weight.std().item() == pytest.approx(wanted, rel=0.02)
    started = timm.create_model("resnet18_gelu", zero_init_last=True)
    assert not started.layer1[0].bn2.weight.any()


def test_recipes_can_name_the_activation() -> None:
    model = create_model("resnet18", num_classes=4, image_size=64, **SETTINGS, act_layer="gelu")
    assert any(type(m).__name__ == "GELU" for m in model.modules())
    relu = create_model("resnet18_gelu", num_classes=4, image_size=64, **SETTINGS, act_layer="relu")
    assert any(isinstance(m, nn.ReLU) for m in relu.modules())


def test_timms_services() -> None:
    model = timm.create_model("resnet18_gelu", num_classes=7, drop_path_rate=0.1)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
    features = timm.create_model("resnet18_gelu", features_only=True)(
        torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    )
    assert [f.shape[1] for f in features] == [64, 64, 128, 256, 512]
    with pytest.raises(ValueError, match="resnet50_gelu has no weights to download"):
        timm.create_model("resnet50_gelu", pretrained=True)


def learns(model: nn.Module, size: int) -> list[str]:
    """Names of the parameters that one step of SGD leaves as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model.train()(torch.rand(4, 3, size, size))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert logits.isfinite().all()
    optimizer.step()
    return [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("norm_stats", ["local", "ghost:2", "groups:2x2:modulo"])
def test_one_step_changes_every_parameter(block: type[nn.Module], norm_stats: str) -> None:
    torch.manual_seed(0)
    settings = {"block": block, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "norm_stats": norm_stats}
    model = create_model(
        "resnet18",
        num_classes=4,
        image_size=64,
        act_layer="gelu",
        zero_init_last=False,
        **SETTINGS,
        **settings,
    )
    assert not learns(model, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_full_size(name: str) -> None:
    torch.manual_seed(0)
    assert not learns(timm.create_model(f"{name}_gelu"), 224)
