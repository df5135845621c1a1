"""AutoAttack on anybody's model: against the truth where it is known, and what it says of models that fool it."""

import pytest
import torch
from torch import Tensor, nn

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
    result = autoattack(model, image, label, eps=EPS, lanes=8)
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
