"""The public functions: found under `robust`, one kind of result, hooks for losses, random models, masked steps."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust

EPS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}
SHORT: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 5},
    "apgd": {"iterations": 8},
    "fab": {"iterations": 8, "targets": 2},
    "square": {"queries": 40},
}


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in SHORT for norm in EPS if (name, norm) != ("pgd", "l1")],
)
def test_every_attack_returns_one_kind_of_result(
    name: str, norm: str, trained: nn.Module, held_out: tuple[Tensor, Tensor]
) -> None:
    image, label = held_out[0][:40], held_out[1][:40]
    settings = (
        SHORT[name] | {"eps": EPS[norm], "norm": norm} | ({"step": EPS[norm] / 4} if name == "pgd" else {})
    )
    attack = getattr(robust, name)
    result = attack(trained, image, label, **settings)
    assert isinstance(result, robust.AttackResult)
    assert result.adversarial.shape == image.shape
    change = (result.adversarial - image).flatten(1)
    length = torch.linalg.vector_norm(change, ord={"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm], dim=1)
    assert float(length.max()) <= EPS[norm] * 1.0001
    right = trained(image).argmax(1) == label
    still = trained(result.adversarial).argmax(1) == label
    assert torch.equal(result.robust, right & still)
    assert [by is None for by in result.broken_by] == result.robust.tolist()
    assert 0 < int(result.robust.sum()) < int(right.sum())
    again = attack(trained, image, label, **settings)
    assert torch.equal(again.adversarial, result.adversarial), "equal seeds, equal bits"
    other = attack(trained, image, label, seed=1, **settings)
    assert name == "fab" or not torch.equal(other.adversarial, result.adversarial)


@pytest.mark.parametrize(
    ("name", "settings", "version"),
    [
        ("apgd", {}, "apgd-ce"),
        ("apgd", {"loss": "dlr", "restarts": 3}, "apgd-dlr-3-restarts"),
        ("apgd", {"loss": "dlr-targeted", "targets": 2}, "apgd-t-2-targets"),
        ("apgd", {"loss": "margin"}, "apgd-margin"),
        ("fab", {}, "fab-t-9-targets"),
        ("fab", {"targets": 0}, "fab"),
        ("fab", {"targets": 0, "restarts": 3}, "fab-3-restarts"),
        ("square", {"queries": 5}, "square"),
    ],
)
def test_the_version_says_what_was_run(
    name: str,
    settings: dict[str, Any],
    version: str,
    trained: nn.Module,
    held_out: tuple[Tensor, Tensor],
) -> None:
    budget = {} if name == "square" else {"iterations": 2}
    image, label = held_out[0][:4], held_out[1][:4]
    assert getattr(robust, name)(trained, image, label, eps=0.05, **budget, **settings).version == version


def test_a_loss_of_ones_own_is_ascended(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out[0][:20], held_out[1][:20]
    calls = []

    def cross_entropy(logits: Tensor, label: Tensor, target: Tensor) -> Tensor:
        calls.append(logits.shape)
        return F.cross_entropy(logits, label, reduction="none")

    own = robust.apgd(trained, image, label, eps=0.1, loss=cross_entropy, iterations=5)
    assert calls
    assert own.version == "apgd-custom"
    named = robust.apgd(trained, image, label, eps=0.1, iterations=5)
    assert own.robust.tolist() == named.robust.tolist()


def test_bpda_finds_what_quantising_hides(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out

    def coarse(x: Tensor) -> Tensor:
        return (x * 15).round() / 15

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return coarse(x)

    masked = nn.Sequential(Hidden(), trained).eval()
    seen = nn.Sequential(robust.bpda(coarse), trained).eval()
    assert torch.equal(masked(image), seen(image)), "the answers are the same bits"
    settings: dict[str, Any] = {"eps": 0.1, "step": 0.025, "steps": 10}
    blind, sighted = (robust.pgd(model, image, label, **settings) for model in (masked, seen))
    assert bool(blind.flags["zero_gradient"].all())
    assert not bool(sighted.flags["zero_gradient"].any())
    assert sighted.robust_accuracy < blind.robust_accuracy - 0.2


def test_bpda_takes_a_stand_in_of_ones_own() -> None:
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    made = robust.bpda(torch.sign, torch.tanh)(image)
    assert torch.equal(made.detach(), image.detach().sign())
    made.sum().backward()
    assert image.grad is not None
    assert torch.allclose(image.grad, 1 - image.detach().tanh() ** 2)
    with pytest.raises(ValueError, match="must be alike"):
        robust.bpda(lambda x: x[:1], None)(image)


def test_averaged_gradients_ask_so_many_times(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out[0][:4], held_out[1][:4]
    asked = []

    def predict(x: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return trained(x)

    robust.apgd(predict, image, label, eps=1e-4, iterations=3, eot=7, lanes=4)
    assert sum(asked) == 4 * 7 + 2, "and two looks for gradients that are zero"


def test_too_few_classes_for_a_loss_is_one_line() -> None:
    image, label = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])

    def predict(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]

    with pytest.raises(
        ValueError, match="loss dlr needs 3 classes and the model has 2; use margin"
    ) as caught:
        robust.apgd(predict, image, label, eps=0.1, loss="dlr")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no loss 'cw'"):
        robust.apgd(predict, image, label, eps=0.1, loss="cw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 restarts"):
        robust.square(predict, image, label, eps=0.1, restarts=0)
    with pytest.raises(ValueError, match="norm 'l3' is not defined here"):
        robust.fab(predict, image, label, eps=0.1, norm="l3")  # type: ignore[arg-type]


def test_functions_stay_functions_and_listing_needs_no_torch() -> None:
    """Importing robust.pgd the module must not put it in the place of robust.pgd the function."""
    program = (
        "import sys, robust, robust.catalogue\n"
        "assert 'torch' not in sys.modules\n"
        "from robust.pgd import PGD\n"
        "import robust.autoattack, robust.apgd, robust.fab, robust.square\n"
        "names = ['autoattack', 'pgd', 'apgd', 'fab', 'square', 'bpda']\n"
        "assert all(type(getattr(robust, name)).__name__ == 'function' for name in names)\n"
        "from robust import square\n"
        "assert square is robust.square and 'square' in dir(robust)\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=120
    )
