"""The losses of TRADES and MART against their formulas, written out class by class in float64."""

import math

import pytest
import torch
from torch import Tensor

from robust.losses import kl_divergence, mart, trades
from robust.pgd import cross_entropy

NUM, CLASSES, BETA = 12, 7, 3.5


def rows(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(NUM, CLASSES, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


LABEL = torch.arange(NUM) % CLASSES
TARGET = torch.softmax(rows(9, 1.0), dim=1)


def test_divergence_is_the_formula() -> None:
    logits, probabilities = rows(0), torch.softmax(rows(1), dim=1)
    found = kl_divergence(logits, probabilities)
    pairs = zip(probabilities.double().tolist(), logits.double().tolist(), strict=True)
    wanted = [divergence(p, softmax(row)) for p, row in pairs]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    own = kl_divergence(logits, torch.softmax(logits, dim=1))
    assert own.abs().max() < 1e-6, "0 for the prediction itself"


def test_divergence_ascends_like_cross_entropy_with_the_soft_target() -> None:
    logits, probabilities = rows(0).requires_grad_(), torch.softmax(rows(1), dim=1)
    (found,) = torch.autograd.grad(kl_divergence(logits, probabilities).sum(), logits)
    (wanted,) = torch.autograd.grad(cross_entropy(logits, probabilities).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_trades_is_the_formula() -> None:
    clean, attacked = rows(2), rows(3)
    found = trades(clean, attacked, TARGET, beta=BETA)
    for i in range(NUM):
        p, q = softmax(clean[i].double().tolist()), softmax(attacked[i].double().tolist())
        fit = -sum(t * math.log(value) for t, value in zip(TARGET[i].double().tolist(), p, strict=True))
        kl = divergence(p, q)
        assert found.fit[i].item() == pytest.approx(fit, rel=1e-5)
        assert found.divergence[i].item() == pytest.approx(kl, rel=1e-4, abs=1e-6)
        assert found.loss[i].item() == pytest.approx(fit + BETA * kl, rel=1e-5)


def test_mart_is_the_formula() -> None:
    clean, attacked = rows(4), rows(5)
    found = mart(clean, attacked, LABEL, beta=BETA)
    for i in range(NUM):
        y = int(LABEL[i])
        p, q = softmax(clean[i].double().tolist()), softmax(attacked[i].double().tolist())
        rival = max(value for c, value in enumerate(q) if c != y)
        boosted = -math.log(q[y]) - math.log(1 - rival)
        kl = divergence(p, q)
        assert found.fit[i].item() == pytest.approx(boosted, rel=1e-4)
        assert found.divergence[i].item() == pytest.approx(kl, rel=1e-4, abs=1e-6)
        assert found.loss[i].item() == pytest.approx(boosted + BETA * (1 - p[y]) * kl, rel=1e-4)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_the_gradient_is_that_of_the_formula_in_both_logits(name: str) -> None:
    """torch's own pieces in float64: softmax, kl_div, and for MART a sort of the probabilities."""
    clean, attacked = rows(6).double().requires_grad_(), rows(7).double().requires_grad_()
    p, q = clean.softmax(1), attacked.softmax(1)
    kl = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
    p_label, q_label = (t.gather(1, LABEL[:, None])[:, 0] for t in (p, q))
    if name == "trades":
        wanted = -(TARGET * p.log()).sum(1) + BETA * kl
        found = trades(clean, attacked, TARGET.double(), beta=BETA).loss
    else:
        best = q.sort(dim=1, descending=True)
        rival = torch.where(best.indices[:, 0] == LABEL, best.values[:, 1], best.values[:, 0])
        wanted = -q_label.log() - (1 - rival).log() + BETA * (1 - p_label) * kl
        found = mart(clean, attacked, LABEL, beta=BETA).loss
    assert found.dtype == torch.float64
    grads = [torch.autograd.grad(loss.sum(), (clean, attacked)) for loss in (found, wanted)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [200.0, 1e4])
def test_saturated_models_give_finite_losses_and_gradients(scale: float) -> None:
    """Probabilities of exactly 0 and 1 in float32: softmax and a logarithm behind it would give NaN."""
    clean, attacked = (rows(seed, scale).requires_grad_() for seed in (0, 1))
    assert (torch.softmax(clean, 1) == 0).any()
    for loss in (
        trades(clean, attacked, TARGET, beta=6.0).loss,
        mart(clean, attacked, LABEL, beta=6.0).loss,
        kl_divergence(attacked, torch.softmax(clean, 1)),
    ):
        assert loss.isfinite().all()
        for gradient in torch.autograd.grad(loss.sum(), (clean, attacked), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_two_classes_have_one_rival() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    found = mart(logits, logits, torch.tensor([1]), beta=1.0)
    assert found.fit.item() == pytest.approx(2 * math.log(1 + math.exp(3)), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_taken_in_float32(dtype: torch.dtype) -> None:
    clean, attacked = rows(0).to(dtype), rows(1).to(dtype)
    for found, wanted in (
        (
            trades(clean, attacked, TARGET, beta=1.0),
            trades(clean.float(), attacked.float(), TARGET, beta=1.0),
        ),
        (mart(clean, attacked, LABEL, beta=1.0), mart(clean.float(), attacked.float(), LABEL, beta=1.0)),
    ):
        assert found.loss.dtype == torch.float32
        assert torch.equal(found.loss, wanted.loss)
    assert kl_divergence(clean, TARGET).dtype == torch.float32
