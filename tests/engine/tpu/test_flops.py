"""Operations of a model, by hand: linear layers, convolutions, attention, and each kind of pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.passes import Passes, passes_of
from engine.recipe import load_recipe
from engine.tpu.flops import count_flops, of_backward, of_forward

RECIPES = Path(__file__).parents[3] / "recipes"


def on_meta(module: nn.Module) -> nn.Module:
    return module.to("meta")


class Attention(nn.Module):
    """Of 2 heads over the rows of an image, after one linear layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(3 * size, 3 * 8)

    def forward(self, image: Tensor) -> Tensor:
        rows = image.transpose(1, 2).flatten(2)
        q, k, v = self.qkv(rows).reshape(len(rows), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def test_a_linear_layer() -> None:
    model = on_meta(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10)))
    once = 2 * 48 * 10
    assert of_forward(model, 4) == (once, once)
    assert of_backward(model, 4, to="weights").total == once  # no gradient of the first input
    assert of_backward(model, 4, to="image").total == once
    assert of_backward(model, 4, to="both").total == 2 * once


def test_the_padding_of_a_convolution_is_told_apart() -> None:
    model = on_meta(nn.Conv2d(3, 5, 3, padding=1))
    found = of_forward(model, 8)
    assert found.total == 2 * 3 * 5 * 9 * 64
    assert found.inside == 2 * 3 * 5 * 22 * 22
    assert of_backward(model, 8, to="both").inside == 2 * found.inside


def test_a_second_layer_needs_both_gradients() -> None:
    model = on_meta(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 6, 2, stride=2)))
    first, second = 2 * 3 * 4 * 64, 2 * 4 * 6 * 4 * 16
    assert of_forward(model, 8).total == first + second
    assert of_backward(model, 8, to="weights").total == first + 2 * second
    assert of_backward(model, 8, to="image").total == first + second


def test_attention_is_two_products_forward_and_four_back() -> None:
    rows, linear = 8, 2 * 8 * 24 * 24
    product = 2 * 2 * rows * rows * 4  # 2 heads of 4
    model = on_meta(Attention(8))
    assert of_forward(model, 8).total == linear + 2 * product
    assert of_backward(model, 8, to="weights").total == linear + 4 * product


def test_passes_are_weighed() -> None:
    recipe = load_recipe(RECIPES / "bai2021" / "adv_deit_small.yaml")
    passes = passes_of(recipe.objective)
    found = count_flops(recipe, passes)
    assert passes[:3] == (2, 1, 1)
    forward, to_image, full = found.components
    assert found.total == 2 * forward.each.total + to_image.each.total + full.each.total
    assert forward.each.total == pytest.approx(
        2 * 4.6e9, rel=0.01
    )  # DeiT-S: 4.6 G multiply-adds (Touvron et al.)
    assert full.each.total < 2 * forward.each.total + 2e9
    assert found.missing is None


def test_a_probe_trains_its_head_alone() -> None:
    words = ["model.trainable=head", "objective.mixup=0", "objective.cutmix=0"]
    recipe = load_recipe(RECIPES / "quickstart" / "vit_clean.yaml", words)
    (_, full) = count_flops(recipe, Passes(1, 0, 1), num_classes=10).components
    (_, whole) = count_flops(
        load_recipe(RECIPES / "quickstart" / "vit_clean.yaml"), Passes(1, 0, 1), num_classes=10
    ).components
    assert 0 < full.each.total < whole.each.total / 100


def test_a_teacher_is_counted_where_its_model_is_known() -> None:
    words = ["objective.distill={teacher: runs/teacher}"]
    recipe = load_recipe(RECIPES / "quickstart" / "cnn_clean.yaml", words)
    passes = passes_of(recipe.objective)
    unknown = count_flops(recipe, passes)
    assert unknown.missing == "the teacher's forward pass"
    distill = recipe.objective.distill
    assert distill is not None
    stated = distill.model_copy(update={"teacher_model": "resnet18", "teacher_image_size": 64})
    known = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"distill": stated})})
    found = count_flops(known, passes)
    assert found.missing is None
    assert found.components[-1][:2] == ("teacher's forward", 1)
    with torch.device("meta"):
        import timm

        lone = timm.create_model("resnet18")
    assert found.components[-1].each == of_forward(lone, 64)
    assert found.total - unknown.total == found.components[-1].each.total
