"""create_model over timm: what is passed on, what is refused, and that nothing is fetched."""

import socket
from typing import Any

import pytest
import torch
from timm.layers import DropPath

from models.pixel import PixelModel
from models.registry import create_model, list_models

COMMON: dict[str, Any] = {"num_classes": 5, "image_size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("create_model opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "deit_tiny_patch16_224",
        "mobilenetv3_small_050",
        "poolformer_s12",
        "resnet18.a1_in1k",
        "test_vit",
    ],
)
def test_timm_models_of_several_families(name: str) -> None:
    model = create_model(name, **COMMON)
    assert isinstance(model, PixelModel)
    assert (model.name, model.num_classes, model.image_size) == (name, 5, 64)
    with torch.no_grad():
        assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 5)


def drop_paths(model: torch.nn.Module) -> list[float]:
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


def test_drop_path_reaches_the_model_and_zero_means_none() -> None:
    assert max(drop_paths(create_model("small_vit", **COMMON, drop_path=0.2))) == pytest.approx(0.2)
    assert max(drop_paths(create_model("small_cnn", **COMMON, drop_path=0.2))) == pytest.approx(0.2)
    # Swin's own default is 0.1; a recipe that says 0 must get 0
    assert (
        max(
            drop_paths(create_model("swin_tiny_patch4_window7_224", **COMMON, depths=(1, 1, 1, 1))), default=0
        )
        == 0
    )


def test_extra_settings_reach_the_constructor() -> None:
    model = create_model("small_vit", **COMMON, embed_dim=48, depth=2)
    assert len(model.backbone.blocks) == 2
    assert model.backbone.embed_dim == 48


def test_same_global_seed_same_weights() -> None:
    torch.manual_seed(3)
    first = create_model("small_cnn", **COMMON).state_dict()
    torch.manual_seed(3)
    second = create_model("small_cnn", **COMMON).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_norm_stats_is_applied() -> None:
    model = create_model("resnet18", **COMMON, norm_stats="ghost:2").train()
    assert "GroupBatchNorm2d" in {type(module).__name__ for module in model.modules()}
    with pytest.raises(ValueError, match="groups of 2 cannot split 3 images"):
        model(torch.rand(3, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet5", {}, r"unknown model 'resnet5'.*nearest: resnet5\d"),
        ("small_cn", {}, r"nearest: small_cnn"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, r"unknown model 'hf-hub:timm/resnet18.a1_in1k'"),
        ("qqqqqqqqqq", {}, r"small_cnn, small_vit, or one of timm"),
        ("resnet18.nonsense", {}, r"refuses .*nonsense"),
        ("vgg11", {"drop_path": 0.1}, r"no setting 'drop_path' \(given 0.1\)"),
        ("resnet18", {"colour": 1}, r"no setting 'colour' \(given 1\)"),
        ("poolformer_s12", {"colour": 1}, r"no setting 'colour' \(given 1\)"),
        (
            "small_vit",
            {"image_size": 45},
            r"image size 45 is no multiple of small_vit's patch size 4; try 44 or 48",
        ),
        ("small_cnn", {"num_classes": 0}, r"num_classes 0 is below 1"),
        ("small_cnn", {"norm_stats": "ghots:4"}, r"unknown norm_stats 'ghots:4'"),
    ],
)
def test_mistakes_are_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create_model(name, **{**COMMON, **settings})
    assert "\n" not in str(caught.value)


def test_list_models() -> None:
    assert set(list_models("small_[cv]*")) == {"small_cnn", "small_vit"}
    assert {"resnet50", "deit_small_patch16_224", "small_cnn"} <= set(list_models())
