"""AutoAttack on anybody's model: against the truth where it is known, and what it says of models that fool it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust
from robust.autoattack import autoattack
from robust.versions import version_of

EPS = 8 / 255


class Linear(nn.Module):
    """K classes, logits W x: the robust images are known exactly."""

    def __init__(self, num_classes: int = 10, side: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(num_classes)
        self.weight = nn.Parameter(torch.randn(3 * side * side, num_classes, generator=generator) * 0.3)

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.weight

    def is_robust(self, image: Tensor, label: Tensor, eps: float) -> Tensor:
        """For each rival class the worst image of the ball and the box is a corner of it: the exact least margin."""
        flat = image.double().flatten(1)
        low, high = (flat - eps).clamp(min=0.0), (flat + eps).clamp(max=1.0)
        weight = self.weight.detach().double()
        least = torch.full((len(image),), torch.inf, dtype=torch.float64)
        for rival in range(weight.shape[1]):
            w = weight[:, label] - weight[:, [rival]]
            worst = torch.where(w.T > 0, low, high)
            margin = (worst * w.T).sum(1)
            least = torch.where(label == rival, least, torch.minimum(least, margin))
        return least > 0


def problem(num: int = 24, num_classes: int = 10) -> tuple[Linear, Tensor, Tensor]:
    model = Linear(num_classes).eval()
    image = torch.rand(num, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    image[0] = image[0].round()
    label = model(image).argmax(1).detach()
    label[1] = (label[1] + 1) % num_classes
    return model, image, label


def test_standard_finds_the_exact_robust_images_of_a_linear_model() -> None:
    model, image, label = problem()
    result = autoattack(model, image, label, eps=EPS, lanes=24, chunk=100)
    truth = model.is_robust(image, label, EPS)
    assert result.robust.tolist() == truth.tolist()
    assert 0 < int(truth.sum()) < len(image) - 1
    assert result.version == "standard"
    assert result.broken_by[1] == "clean"
    assert [name is None for name in result.broken_by] == truth.tolist()
    wrong = model(result.adversarial).argmax(1) != label
    assert torch.equal(wrong, ~result.robust)
    assert float((result.adversarial - image).abs().max()) <= EPS + 1e-7
    assert result.adversarial.min() >= 0.0
    assert result.adversarial.max() <= 1.0
    assert result.robust_accuracy == float(truth.double().mean())


def test_few_classes_change_the_version_and_its_name() -> None:
    assert version_of("standard", norm="linf", num_classes=10).id == "standard"
    few = version_of("standard", norm="linf", num_classes=5)
    assert few.id == "standard-4-targets"
    assert [part.targets for part in few.parts] == [0, 4, 4, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"version": "strong"}, "no version 'strong'"),
        ({"lanes": 0}, "0 lanes"),
        ({"keys": [1, 2]}, "2 keys for 24 images"),
        ({"eps": 0.0}, "outside \\(0, 1\\]"),
        ({"eps": -0.1}, "outside \\(0, 1\\]"),
        ({"eps": float("nan")}, "outside \\(0, 1\\]"),
        ({"autocast": partial(torch.autocast, "cpu")}, "version standard searches in float32"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(change: dict[str, object], message: str) -> None:
    model, image, label = problem()
    with pytest.raises(ValueError, match=message) as caught:
        autoattack(model, image, label, **({"eps": EPS} | change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_images_and_models_that_break_the_contract_are_one_line() -> None:
    model, image, label = problem()
    with pytest.raises(ValueError, match="selection is empty"):
        autoattack(model, image[:0], label[:0], eps=EPS)
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        autoattack(model, image * 255, label, eps=EPS)
    with pytest.raises(ValueError, match="model has classes 0 to 9"):
        autoattack(model, image, label + 10, eps=EPS)
    with pytest.raises(ValueError, match="train mode"):
        autoattack(model.train(), image, label, eps=EPS)
    with pytest.raises(ValueError, match="not a tensor"):
        autoattack(lambda x: (model(x), 0), image, label, eps=EPS)  # type: ignore[arg-type, return-value]


def test_a_label_that_is_no_class_is_seen_wherever_it_stands() -> None:
    model, image, label = problem(num=80)
    label[79] = 10
    with pytest.raises(ValueError, match="to 10; the model has classes 0 to 9"):
        autoattack(model, image, label, eps=EPS)


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "square"])
def test_every_attack_refuses_what_breaks_the_contract(name: str) -> None:
    model, image, label = problem()
    settings: dict[str, Any] = {"eps": EPS} | ({"step": 0.01, "steps": 1} if name == "pgd" else {})
    function = getattr(robust, name)
    for images, labels, changes, message in (
        (image[:0], label[:0], {}, "selection"),
        (image * 2.0, label, {}, "outside \\[0, 1\\]"),
        (image, label - 11, {}, "labels span"),
        (image, label, {"eps": 1.5}, "outside \\(0, 1\\]"),
        (image, label, {"norm": "l3"}, "norm 'l3'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            function(model, images, labels, **(settings | changes))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="not a tensor"):
        function(lambda x: (model(x), 0), image, label, **settings)


def test_fast_says_how_much_it_may_have_missed() -> None:
    model, image, label = problem(num=100)
    result = autoattack(model, image, label, eps=EPS, version="fast", lanes=128, chunk=200)
    truth = model.is_robust(image, label, EPS)
    assert result.version == "fast"
    assert not bool((truth & ~result.robust).any())
    (note,) = (note for note in result.notes if "survivors were drawn" in note)
    assert f"of the {int(result.robust.sum())} survivors" in note
    assert "broke 0: with 95 % confidence" in note


def test_next_finds_the_exact_robust_images_of_a_linear_model() -> None:
    model, image, label = problem()
    result = autoattack(model, image, label, eps=EPS, version="next", lanes=24, chunk=100)
    assert result.robust.tolist() == model.is_robust(image, label, EPS).tolist()
    assert result.version == "next"


class Blind(torch.autograd.Function):
    """The image; its gradient is zero."""

    @staticmethod
    def forward(ctx: object, image: Tensor) -> Tensor:
        return image.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def test_a_short_attack_says_when_its_start_decides() -> None:
    """Without a gradient PGD ends where it starts."""
    model, image, label = problem()
    settings: dict[str, Any] = {"eps": 0.2, "version": "next", "lanes": 24, "chunk": 200}
    sound = autoattack(model, image, label, **settings)
    blind = autoattack(lambda x: model(Blind.apply(x)), image, label, **settings)
    assert not any("seeds left" in note for note in sound.notes)
    assert any("PGD-10 by 3 seeds left" in note for note in blind.notes), blind.notes
