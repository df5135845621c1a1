"""Parameter groups against timm's, and against what the reference decays."""

from typing import Any

import pytest
import timm
import torch
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from bits.environment import open_environment
from engine.build import Layout, build_optimizer, build_state, check_model
from engine.optim import SGD
from engine.param_groups import parameter_groups
from engine.recipe import Recipe, parse_recipe
from models.norm import set_norm_stats
from models.pixel import PixelModel
from models.registry import create_model

# timm_models: a class token and positions, layers of convolutions, stages, one list of blocks.
MODELS = ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "robust_resnet_dw_small"]
Key = tuple[float, float]


def pixel(name: str, **extra: Any) -> PixelModel:
    with torch.device("meta"):
        return create_model(
            name, num_classes=5, image_size=224, mean=[0.5] * 3, std=[0.5] * 3, norm_stats="local", **extra
        )


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, Key]:
    """(lr_scale, weight_decay) of each parameter; each is in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [
        (names[id(p)], (round(group.get("lr_scale", 1.0), 12), group["weight_decay"]))
        for group in groups
        for p in group["params"]
    ]
    assert len(dict(found)) == len(found), "a parameter in two groups"
    return dict(found)


@pytest.mark.parametrize("name", MODELS)
def test_layer_decay_is_timms(name: str) -> None:
    model = pixel(name)
    inner: Any = model.backbone
    spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    theirs = by_name(
        inner,
        param_groups_layer_decay(inner, weight_decay=0.05, no_weight_decay_list=spared, layer_decay=0.75),
    )
    ours = by_name(model, parameter_groups(model, weight_decay=0.05, layer_decay=0.75))
    assert ours == {f"backbone.{n}": key for n, key in theirs.items()}
    scales = {scale for scale, _ in ours.values()}
    assert max(scales) == 1.0, "the classifier learns at lr"
    assert len(scales) > 5


def test_layer_decay_by_hand() -> None:
    """A transformer of 12 blocks: the embedding, then block 0, ... 11, then norm and classifier."""
    model = pixel("vit_tiny_patch16_224")
    found = by_name(model, parameter_groups(model, weight_decay=0.05, layer_decay=0.5))
    wanted = {"patch_embed.proj.weight": 2.0**-13, "blocks.0.attn.qkv.weight": 2.0**-12}
    wanted |= {"blocks.11.mlp.fc1.weight": 0.5, "head.weight": 1.0}
    for name, scale in wanted.items():
        assert found[f"backbone.{name}"] == (round(scale, 12), 0.05), name
    assert found["backbone.pos_embed"] == (round(2.0**-13, 12), 0.0), "named by no_weight_decay"


@pytest.mark.parametrize("name", MODELS)
def test_decay_is_timms(name: str) -> None:
    model = pixel(name)
    inner: Any = model.backbone
    spared = inner.no_weight_decay() if hasattr(inner, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(inner, weight_decay=0.05, no_weight_decay_list=spared)
    ours = by_name(model, parameter_groups(model, weight_decay=0.05))
    assert ours == {f"backbone.{n}": key for n, key in by_name(inner, theirs).items()}


def test_vectors_biases_names_and_frozen() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 4, 5))
            self.linear = nn.Linear(5, 5)
            self.norm = nn.LayerNorm(5)
            self.frozen = nn.Linear(5, 5).requires_grad_(False)

        def no_weight_decay(self) -> set[str]:
            return {"pos_embed"}

    net = nn.Sequential(Net())  # the name is found behind a prefix too
    found = by_name(net, parameter_groups(net, weight_decay=0.05))
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert decayed == {"0.linear.weight"}
    assert found.keys() == {"0.pos_embed", "0.linear.weight", "0.linear.bias", "0.norm.weight", "0.norm.bias"}


@pytest.mark.parametrize("norm_stats", ["local", "ghost:2", "groups:2x4:modulo"])
def test_the_scale_of_norms_is_decayed_when_asked(norm_stats: str) -> None:
    """Bai et al. 2021's adversarial ResNets: a depth-wise convolution of four dimensions, and its bias."""
    model = timm.create_model("resnet18", num_classes=5)
    set_norm_stats(model, norm_stats, num_devices=1, reduce=None)
    plain = by_name(model, parameter_groups(model, weight_decay=0.1))
    quirk = by_name(model, parameter_groups(model, weight_decay=0.1, decay_norm_weight=True))
    changed = {name for name in plain if plain[name] != quirk[name]}
    scales = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert changed == scales
    assert len(scales) == 20
    assert quirk["bn1.bias"] == quirk["fc.bias"] == (1.0, 0.0)


def test_what_the_model_exempts_stays_exempt() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(5)

        def no_weight_decay(self) -> set[str]:
            return {"norm.weight"}

    found = by_name(net := Net(), parameter_groups(net, weight_decay=0.1, decay_norm_weight=True))
    assert found["norm.weight"] == (1.0, 0.0)


# ---- in a recipe


def recipe(name: str = "small_vit", **optim: Any) -> Recipe:
    tree = {
        "data": {"train": "unused", "image_size": 32, "num_classes": 5},
        "model": {"name": name},
        "optim": {"name": "sgd", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.0, "nesterov": False, **optim},
        "run": {"epochs": 2, "batch_size": 8},
    }
    return parse_recipe(tree)


def test_a_recipe_s_optimizer_has_them() -> None:
    torch.manual_seed(0)
    model = create_model("small_vit", num_classes=5, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    optimizer = build_optimizer(recipe(layer_decay=0.5, decay_norm_weight=True), model)
    assert isinstance(optimizer, SGD)
    found = by_name(model, optimizer.param_groups)
    assert found["backbone.blocks.3.norm1.weight"] == (0.5, 0.1)
    assert found["backbone.blocks.2.norm1.bias"] == (0.25, 0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.set_lr(torch.tensor(0.1))
    optimizer.step()
    for name, p in model.named_parameters():
        scale, decay = found[name]
        wanted = before[name] - 0.1 * scale * (1.0 + decay * before[name])
        torch.testing.assert_close(p.detach(), wanted, msg=name)


def test_layers_without_an_order_are_refused_at_build() -> None:
    with pytest.raises(
        ValueError, match=r"layer_decay is 0\.75, but model 'small_cnn'.*set it to null"
    ) as error:
        check_model(recipe("small_cnn", layer_decay=0.75))
    assert "\n" not in str(error.value)
    env = open_environment("cpu")
    layout = Layout(global_batch=8, per_process=8, per_device=8)
    with pytest.raises(ValueError, match="has no group_matcher"):
        build_state(recipe("small_cnn", layer_decay=0.75), env, num_classes=5, layout=layout)
