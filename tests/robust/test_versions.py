"""AutoAttack's versions: what runs, for any number of classes and either norm, and what the id says of it."""

from itertools import product

import pytest
import torch
from torch import Tensor

from robust.apgd import Apgd
from robust.apgd_l1 import ApgdL1
from robust.autoattack import autoattack
from robust.lanes import Norm
from robust.square import Square
from robust.square_l2 import SquareL2
from robust.versions import Version, version_of

CHANGES = {  # of all but rand, which has no targets, and of rand
    2: ("-1-target-margin", "-margin"),
    3: ("-2-targets-margin", ""),
    4: ("-3-targets", ""),
    9: ("-8-targets", ""),
    10: ("", ""),
    1000: ("", ""),
}
NAMES = ("standard", "plus", "rand", "fast", "next")


@pytest.mark.parametrize("num_classes", list(CHANGES))
def test_an_id_says_what_was_changed(num_classes: int) -> None:
    for name in NAMES:
        change = CHANGES[num_classes][name == "rand"]
        assert version_of(name, norm="linf", num_classes=num_classes).id == name + change


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_published_orders_and_budgets(norm: str) -> None:
    standard = version_of("standard", norm=norm, num_classes=10)
    assert [(p.name, p.targets, p.restarts, p.component.steps) for p in standard.parts] == [
        ("apgd-ce", 0, 1, 101),
        ("apgd-t", 9, 1, 101),
        ("fab-t", 9, 1, 100),
        ("square", 0, 1, 5001),
    ]
    plus = version_of("plus", norm=norm, num_classes=10)
    assert [(p.name, p.targets, p.restarts) for p in plus.parts] == [
        ("apgd-ce", 0, 5),
        ("apgd-dlr", 0, 5),
        ("fab", 0, 1),
        ("fab-restarts", 0, 4),
        ("square", 0, 1),
        ("apgd-t", 9, 1),
        ("fab-t", 9, 1),
    ]
    rand = version_of("rand", norm=norm, num_classes=10)
    assert [p.name for p in rand.parts] == ["apgd-ce", "apgd-dlr"]
    for part in (*standard.parts, *plus.parts, *rand.parts):
        if isinstance(part.component, Apgd):
            assert part.component.eot == (20 if part in rand.parts else 1)
        if part.name == "square":
            assert isinstance(part.component, SquareL2 if norm == "l2" else Square)
        else:
            assert part.component.norm == norm  # type: ignore[attr-defined]


def test_the_published_l1_version_begins_in_larger_balls() -> None:
    standard = version_of("standard", norm="l1", num_classes=10)
    assert standard.id == "standard"
    assert [(p.name, p.targets, p.restarts, p.component.steps) for p in standard.parts] == [
        ("apgd-ce", 0, 5, 103),
        ("apgd-t", 5, 1, 103),
        ("fab-t", 9, 1, 100),
        ("square", 0, 1, 5001),
    ]
    for name in NAMES:
        for num_classes in CHANGES:
            version = version_of(name, norm="l1", num_classes=num_classes)
            assert version.id == name + CHANGES[num_classes][name == "rand"]
            assert all(p.component.norm == "l1" for p in version.parts)
            steps = {p.component.steps for p in version.parts if isinstance(p.component, ApgdL1)}
            assert steps == {101 if name in ("plus", "rand") else 103}
    with pytest.raises(ValueError, match="norm 'l3' is not defined here; use linf, l2, l1"):
        version_of("standard", norm="l3", num_classes=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_our_own_versions_are_never_called_standard(norm: Norm) -> None:
    fast = version_of("fast", norm=norm, num_classes=1000)
    assert fast.is_low
    found = [(p.name, p.targets, p.share, p.is_float32) for p in fast.parts]
    assert found[:2] == [("apgd-ce", 0, 1.0, False), ("apgd-t", 9, 1.0, False)]
    share = found[2][2]
    assert found[2:] == [
        ("apgd-ce-audit", 0, share, True),
        ("apgd-t-audit", 9, share, True),
        ("fab-t", 9, share, True),
        ("square", 0, share, True),
    ], "what standard runs, in float32"
    assert share < 0.1
    following = version_of("next", norm=norm, num_classes=1000)
    assert not following.is_low
    assert [(p.name, p.targets, p.candidates) for p in following.parts] == [
        ("apgd-pm", 0, 0),
        ("apgd-t", 9, 100),
        ("square", 0, 0),
    ]
    assert version_of("next", norm=norm, num_classes=10).parts[1].candidates == 9
    assert all(p.component.norm == norm for p in (*fast.parts, *following.parts))


@pytest.mark.parametrize("name", ["fast", "next"])
def test_they_cost_a_third_of_standard_by_count(name: str) -> None:
    """Passes of a survivor of 1,000 classes, a backward one counts two; the nearest classes ask for 12 and 108."""

    def units(version: Version) -> float:
        return sum(
            p.share * max(p.targets, p.restarts) * p.component.steps * (passes.forward + 2 * passes.backward)
            for p in version.parts
            for passes in [p.component.passes]
        ) + (12 + 2 * 108 if version.id == "next" else 0)

    standard, ours = (version_of(version, norm="linf", num_classes=1000) for version in ("standard", name))
    assert units(ours) < (1 / 3 if name == "fast" else 0.4) * units(standard)


class Linear(torch.nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(num_classes)
        self.weight = torch.nn.Parameter(torch.randn(48, num_classes, generator=generator) * 0.3)

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) @ self.weight

    def is_robust(self, image: Tensor, label: Tensor, eps: float) -> Tensor:
        """linf: for each rival the worst image of ball and box is one of its corners."""
        flat, weight = image.double().flatten(1), self.weight.detach().double()
        low, high = (flat - eps).clamp(min=0.0), (flat + eps).clamp(max=1.0)
        least = torch.full((len(image),), torch.inf, dtype=torch.float64)
        for rival in range(weight.shape[1]):
            w = (weight[:, label] - weight[:, [rival]]).T
            margin = (torch.where(w > 0, low, high) * w).sum(1)
            least = torch.where(label == rival, least, torch.minimum(least, margin))
        return least > 0


def problem(num_classes: int) -> tuple[Linear, Tensor, Tensor]:
    model = Linear(num_classes).eval()
    image = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return model, image, model(image).argmax(1).detach()


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer queries and iterations: a linear model needs few."""
    import robust.versions as versions

    monkeypatch.setattr(versions, "Square", lambda **_: Square(queries=60))
    monkeypatch.setattr(versions, "EOT", 2)
    monkeypatch.setattr(versions, "RESTARTS", 2)


@pytest.mark.parametrize(
    ("num_classes", "version"),
    [*product((2, 3, 4, 9, 10), ("standard", "plus", "rand")), *product((2, 10), ("fast", "next"))],
)
def test_any_number_of_classes_gives_the_exact_answer(
    num_classes: int, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch)
    model, image, label = problem(num_classes)
    eps = next(e / 255 for e in range(1, 99) if int(model.is_robust(image, label, e / 255).sum()) <= 5)
    truth = model.is_robust(image, label, eps)
    result = autoattack(model, image, label, eps=eps, version=version, lanes=16, chunk=25)
    assert not bool((truth & ~result.robust).any()), "nothing beats the truth"
    assert 0 < int(truth.sum()) < len(image)
    if version != "rand":  # which has no targets, and may miss
        assert result.robust.tolist() == truth.tolist()
    assert result.version.startswith(version)
