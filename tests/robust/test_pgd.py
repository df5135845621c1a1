"""PGD against the closed form, against foolbox, and against what an attack must and must not do."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust import pgd
from robust.pgd import PGD, cross_entropy
from robust.threat import L2, THREATS, Linf

EPS = 0.1


def noise(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform [0, 1) from one generator per image: the contract of the toolkit's own noise."""
    rows = [torch.rand(shape, generator=torch.Generator().manual_seed(int(s))) for s in seed]
    return torch.stack(rows)


class Linear2(nn.Module):
    """Two classes, logits (0, w.x + b): cross-entropy is monotonic in the margin, so the optimum is known."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3 * 6 * 6, generator=generator) * 0.1)

    def forward(self, image: Tensor) -> Tensor:
        score = image.flatten(1) @ self.weight + 0.05
        return torch.stack((torch.zeros_like(score), score), 1)


def linear_batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(count, 3, 6, 6, generator=generator)
    image[0] = image[0].round()  # an image on the border of the box: clipping decides everything
    return image, torch.arange(count) % 2, torch.arange(count) + 100


@pytest.mark.parametrize("start", ["uniform", "clean"])
@pytest.mark.parametrize("per_image_eps", [False, True])
def test_linear_model_closed_form(start: Any, per_image_eps: bool) -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    eps = torch.linspace(0.02, 0.3, 6) if per_image_eps else torch.tensor(EPS)
    attack = PGD(steps=12, step_size=0.06, noise=noise, start=start)
    adversarial = attack(model, image, label, eps=eps, seed=seed)
    away = (1.0 - 2.0 * label).view(-1, 1, 1, 1)  # label 0 loses when the score grows
    direction = away * model.weight.detach().sign().view(1, 3, 6, 6)
    optimum = (image + eps.view(-1, 1, 1, 1) * direction).clamp(0, 1)
    torch.testing.assert_close(adversarial, optimum, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(adversarial), model(optimum), rtol=0, atol=1e-5)


def away_from_label(model: Linear2, label: Tensor) -> Tensor:
    """The unit l2 direction (N,3,6,6) that raises each image's loss most."""
    direction = model.weight.detach() / model.weight.detach().norm()
    return (1.0 - 2.0 * label).view(-1, 1, 1, 1) * direction.view(1, 3, 6, 6)


@pytest.mark.parametrize("start", ["uniform", "clean"])
@pytest.mark.parametrize("per_image_eps", [False, True])
def test_l2_linear_model_closed_form(start: Any, per_image_eps: bool) -> None:
    """Inside the box the optimum is eps * w / ||w||, and from any start PGD goes there."""
    model = Linear2()
    image, label, seed = linear_batch()
    image = 0.3 + 0.4 * image
    eps = torch.linspace(0.1, 0.9, 6) if per_image_eps else torch.tensor(0.8)
    optimum = image + eps.view(-1, 1, 1, 1) * away_from_label(model, label)
    assert optimum.min() > 0
    assert optimum.max() < 1
    attack = PGD(steps=40, step_size=eps, noise=noise, start=start, threat=L2())
    adversarial = attack(model, image, label, eps=eps, seed=seed)
    torch.testing.assert_close(adversarial, optimum, rtol=0, atol=1e-6)


def test_l2_projection_towards_the_clean_image_costs_little_at_the_box() -> None:
    """Where the box clips, the best change is clip(image + c*w) of length eps, c found by bisection."""
    model = Linear2()
    image, label, seed = linear_batch()
    image, eps, direction = image.round(), 3.0, away_from_label(model, label)  # every pixel at the border
    low, high = torch.zeros(6, 1, 1, 1), torch.full((6, 1, 1, 1), 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        is_long = ((image + middle * direction).clamp(0, 1) - image).flatten(1).norm(dim=1) > eps
        low, high = (
            torch.where(is_long[:, None, None, None], low, middle),
            torch.where(is_long[:, None, None, None], middle, high),
        )
    optimum = (image + low * direction).clamp(0, 1)
    attack = PGD(steps=40, step_size=eps / 4, start="clean", threat=L2())
    adversarial = attack(model, image, label, eps=torch.tensor(eps), seed=seed)
    with torch.no_grad():
        clean, ours, best = (cross_entropy(model(x), label) for x in (image, adversarial, optimum))
    share = (ours - clean) / (best - clean)
    assert (share < 1 + 1e-4).all()  # nothing beats the optimum
    assert (share > 0.97).all()  # 0.981 to 0.989 measured


def test_soft_targets_ascend_the_soft_cross_entropy() -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    hard = F.one_hot(label, 2).float()
    attack = PGD(steps=4, step_size=0.03, noise=noise)
    by_label = attack(model, image, label, eps=torch.tensor(EPS), seed=seed)
    by_distribution = attack(model, image, hard, eps=torch.tensor(EPS), seed=seed)
    torch.testing.assert_close(by_label, by_distribution, rtol=0, atol=1e-6)
    # a target of 0.9 for the other class turns the direction round
    turned = attack(model, image, 0.9 * (1 - hard) + 0.1 * hard, eps=torch.tensor(EPS), seed=seed)
    with torch.no_grad():
        assert (cross_entropy(model(turned), label) < cross_entropy(model(by_label), label)).all()


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    expected = torch.log(torch.tensor([3.0]))
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([1])), expected)
    torch.testing.assert_close(
        cross_entropy(logits, torch.tensor([[0.2, 0.3, 0.5]]).bfloat16()), expected, rtol=1e-2, atol=0
    )


def foolbox_pgd(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    norm: str,
    eps: float,
    start: Tensor | None,
    steps: int,
    step_size: float,
) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        kind: Any = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]

        class GivenStart(kind):  # type: ignore[misc]
            def get_random_start(self, x0: Any, epsilon: float) -> Any:
                return x0 + (start - x0.raw)

        attack = GivenStart(abs_stepsize=step_size, steps=steps, random_start=start is not None)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, clipped, _ = attack(wrapped, image, label, epsilons=eps)
    return clipped.detach()


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equal_to_foolbox_image_by_image(
    trained: nn.Module, held_out: tuple[Tensor, Tensor], norm: str, random_start: bool
) -> None:
    image, label = held_out
    seed, threat, eps = torch.arange(len(label)), THREATS[norm], {"linf": EPS, "l2": 0.8}[norm]
    start = threat.random_start(image, torch.tensor(eps), noise, seed) if random_start else None
    same = {"steps": 10, "step_size": eps / 4}
    attack = PGD(noise=noise, start="uniform" if random_start else "clean", threat=threat, **same)  # type: ignore[arg-type]
    ours = attack(trained, image, label, eps=torch.tensor(eps), seed=seed)
    theirs = foolbox_pgd(trained, image, label, norm=norm, eps=eps, start=start, **same)  # type: ignore[arg-type]
    with torch.no_grad():
        flags = trained(ours).argmax(1) == label, trained(theirs).argmax(1) == label
        assert 0.02 < flags[0].float().mean() < 0.98  # both verdicts occur
    assert torch.equal(*flags)
    # A pixel whose gradient is zero within rounding may take the other sign; a few in 38,400 are allowed.
    differing = ((ours - theirs).abs() > (1e-6 if norm == "linf" else 1e-5)).float().mean()
    assert differing < (2e-3 if norm == "linf" else 1e-3)


def test_l2_each_step_equals_foolboxs(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out[0][:40], held_out[1][:40]
    attack = PGD(steps=0, step_size=0.3, start="clean", threat=L2())
    state = attack.init(image, label, eps=torch.tensor(0.8), seed=torch.arange(40))
    for steps in range(1, 7):
        state = attack.step(trained, state)
        theirs = foolbox_pgd(
            trained, image, label, norm="l2", eps=0.8, start=None, steps=steps, step_size=0.3
        )
        torch.testing.assert_close(state.image, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_inside_ball_and_box(trained: nn.Module, held_out: tuple[Tensor, Tensor], norm: str) -> None:
    image, label = held_out
    eps = torch.linspace(0.01, 0.4, len(label)) * (1 if norm == "linf" else 10)
    attack = PGD(steps=5, step_size=0.1, noise=noise, threat=THREATS[norm])
    adversarial = attack(trained, image, label, eps=eps, seed=torch.arange(len(label)))
    change = (adversarial - image).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.double().square().sum(1).sqrt()
    assert (length <= eps * (1 + 1e-6) + 2e-7).all()
    assert (length[-20:] > 0.1).all()  # it went somewhere
    assert adversarial.min() >= 0.0
    assert adversarial.max() <= 1.0
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_model_is_left_as_found(trained: nn.Module, held_out: tuple[Tensor, Tensor], training: bool) -> None:
    image, label = held_out[0][:16], held_out[1][:16]
    buffers = {name: value.clone() for name, value in trained.named_buffers()}
    weights = {name: value.clone() for name, value in trained.named_parameters()}
    for parameter in trained.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    original = image.clone()
    trained.train(training)
    try:
        PGD(steps=2, step_size=0.05, noise=noise)(
            trained, image, label, eps=torch.tensor(EPS), seed=torch.arange(16)
        )
        assert all(module.training is training for module in trained.modules())
        assert all(torch.equal(p.grad, torch.full_like(p, 2.0)) for p in trained.parameters())
        assert all(torch.equal(weights[name], value) for name, value in trained.named_parameters())
        assert torch.equal(image, original)
        if not training:
            assert all(torch.equal(buffers[name], value) for name, value in trained.named_buffers())
    finally:
        trained.load_state_dict({**weights, **buffers})
        trained.eval()
        for parameter in trained.parameters():
            parameter.grad = None


def accuracy(model: nn.Module, image: Tensor, label: Tensor) -> float:
    with torch.no_grad():
        return float((model(image).argmax(1) == label).float().mean())


def test_beats_noise_and_stronger_is_not_weaker(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out
    seed = torch.arange(len(label))

    def attacked(steps: int, eps: float) -> float:
        attack = PGD(steps=steps, step_size=max(eps / 4, eps / max(steps, 1)), noise=noise)
        return accuracy(trained, attack(trained, image, label, eps=torch.tensor(eps), seed=seed), label)

    clean, only_noise = accuracy(trained, image, label), attacked(0, EPS)
    assert clean > 0.9
    assert only_noise > clean - 0.05  # a random start alone is harmless
    by_steps = [attacked(steps, EPS) for steps in (1, 5, 20)]
    assert by_steps[0] < only_noise - 0.1
    assert by_steps[1] <= by_steps[0] + 0.005
    assert by_steps[2] <= by_steps[1] + 0.005
    by_eps = [attacked(5, eps) for eps in (0.02, 0.1, 0.3)]
    assert by_eps[0] > by_eps[1] > by_eps[2]
    assert by_eps[2] < 0.05


def test_an_image_does_not_depend_on_its_batch() -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    attack = PGD(steps=2, step_size=0.013, noise=noise)  # short of the border, so the start still shows
    together = attack(model, image, label, eps=torch.tensor(EPS), seed=seed)
    order = torch.tensor([4, 1, 3])
    apart = attack(model, image[order], label[order], eps=torch.tensor(EPS), seed=seed[order])
    torch.testing.assert_close(apart, together[order], rtol=0, atol=1e-6)


def test_seeds_decide_the_start() -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    attack = PGD(steps=1, step_size=0.01, noise=noise)
    first = attack(model, image, label, eps=torch.tensor(EPS), seed=seed)
    assert torch.equal(first, attack(model, image, label, eps=torch.tensor(EPS), seed=seed))
    other = attack(model, image, label, eps=torch.tensor(EPS), seed=seed + 1)
    assert ((first - other).flatten(1).abs().amax(1) > 0.01).all()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_clean_prob_chooses_the_start_image_by_image(as_tensor: bool) -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    start_u = torch.tensor([0.0, 0.1999, 0.2, 0.5, 0.99, 0.19])
    probability: Any = torch.tensor(0.2) if as_tensor else 0.2
    attack = PGD(steps=0, step_size=0.01, noise=noise, clean_prob=probability)
    started = attack(model, image, label, eps=torch.tensor(EPS), seed=seed, start_u=start_u)
    is_clean = (started == image).flatten(1).all(1)
    assert is_clean.tolist() == [True, True, False, False, False, True]
    with pytest.raises(ValueError, match="needs start_u"):
        attack(model, image, label, eps=torch.tensor(EPS), seed=seed)


def test_parts_compose_to_the_whole_and_knobs_may_be_tensors() -> None:
    model = Linear2()
    image, label, seed = linear_batch()
    cuts: list[int] = []
    knobs = torch.tensor([EPS, 0.02])
    attack = PGD(steps=3, step_size=knobs[1], noise=noise, cut=lambda: cuts.append(1))
    whole = attack(model, image, label, eps=knobs[0], seed=seed)
    assert len(cuts) == 4  # after init and after every step
    state = attack.init(image, label, eps=knobs[0], seed=seed)
    for _ in range(3):
        before = state
        state = attack.step(model, state)
        assert before.image is not state.image  # pure: the old state is still there
    assert torch.equal(attack.finish(state), whole)
    by_number = PGD(steps=3, step_size=0.02, noise=noise)(
        model, image, label, eps=torch.tensor(EPS), seed=seed
    )
    torch.testing.assert_close(by_number, whole, rtol=0, atol=1e-7)


def test_public_function_gives_verdicts(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out
    result = pgd(trained, image, label, eps=EPS, step=EPS / 4, steps=10, noise=noise)
    with torch.no_grad():
        clean_correct = trained(image).argmax(1) == label
        after = trained(result.adversarial).argmax(1) == label
    assert torch.equal(result.robust, clean_correct & after)
    assert torch.equal(result.flags["clean_correct"], clean_correct)
    wanted = [
        None if r else "pgd-10" if c else "clean" for r, c in zip(result.robust, clean_correct, strict=True)
    ]
    assert list(result.broken_by) == wanted
    assert {None, "pgd-10", "clean"} == set(wanted)
    assert result.version == "pgd-10"
    assert not result.flags["zero_gradient"].any()
    again = pgd(trained, image, label, eps=EPS, step=EPS / 4, steps=10, noise=noise, seed=0)
    other = pgd(trained, image, label, eps=EPS, step=EPS / 4, steps=10, noise=noise, seed=1)
    assert torch.equal(again.adversarial, result.adversarial)
    assert not torch.equal(other.adversarial, result.adversarial)
    without_noise = pgd(trained, image, label, eps=EPS, step=EPS / 4, steps=10)
    assert not torch.equal(without_noise.adversarial, result.adversarial), "the toolkit's own noise"
    without = pgd(trained, image, label, eps=EPS, step=EPS / 4, steps=10, random_start=False)
    assert without.robust.shape == label.shape


def test_an_image_that_was_wrong_is_never_robust() -> None:
    image, label, _ = linear_batch()

    def contrary(x: Tensor) -> Tensor:  # wrong on the clean images, right on every other one
        is_clean = (x.detach() == image).flatten(1).all(1)
        right = F.one_hot(label, 2).float() + 1e-3 * Linear2()(x)
        return torch.where(is_clean[:, None], -right, right)

    result = pgd(contrary, image, label, eps=EPS, step=EPS, steps=1, noise=noise)
    with torch.no_grad():
        assert (contrary(result.adversarial).argmax(1) == label).all()
    assert not result.robust.any()


def test_a_blind_attack_is_flagged() -> None:
    model = Linear2()
    image, label, _ = linear_batch()

    def saturated(x: Tensor) -> Tensor:  # float32 cross-entropy of a margin of 1e4 has no gradient at all
        sign = torch.where(label == 1, 1e4, -1e4)
        return model(x) + torch.stack((torch.zeros_like(sign), sign), 1)

    result = pgd(saturated, image, label, eps=EPS, step=EPS, steps=1, random_start=False)
    assert result.flags["zero_gradient"].all()
    assert result.robust.all()


def test_a_gradient_that_is_not_a_number_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image, label, seed = linear_batch()
    model = Linear2()
    with torch.no_grad():
        label = model(image).argmax(1)

    def predict(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        return logits + 0.0 * (x - x.detach()).abs().sqrt().sum((1, 2, 3))[:, None]

    class Broken(Linf):
        """As where the sign of a NaN is a NaN."""

        def step(self, image: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
            return image + gradient

    monkeypatch.setitem(THREATS, "linf", Broken())  # type: ignore[arg-type]
    result = pgd(predict, image, label, eps=EPS, step=0.05, steps=3, seed=seed)
    assert torch.equal(result.adversarial, image)
    assert result.robust.all()
    assert result.notes == ("6 images met a NaN in the gradient: not attacked",)


def test_logits_that_are_not_numbers_are_no_answer() -> None:
    image, _, seed = linear_batch()
    clean = image.flatten(1).sum(1)

    def predict(x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        logits = torch.stack((-total, total), 1)
        return torch.where((total != clean)[:, None], torch.nan, logits)

    result = pgd(predict, image, torch.ones(6, dtype=torch.int64), eps=EPS, step=0.05, steps=1, seed=seed)
    assert not result.robust.any()


def test_public_function_in_l2(trained: nn.Module, held_out: tuple[Tensor, Tensor]) -> None:
    image, label = held_out

    def attacked(eps: float, **settings: Any) -> Tensor:
        result = pgd(
            trained,
            image,
            label,
            **{"eps": eps, "step": eps / 4, "steps": 10, "noise": noise, "norm": "l2", **settings},
        )
        assert ((result.adversarial - image).flatten(1).norm(dim=1) <= eps * 1.00001).all()
        return result.robust

    share = [float(attacked(eps).float().mean()) for eps in (0.2, 0.8, 3.0)]
    assert share[0] > share[1] > share[2]
    assert share[2] < 0.02
    once, often = attacked(0.8), attacked(0.8, restarts=4, best_iterate=True)
    assert not (often & ~once).any()
    assert often.sum() < once.sum()
    assert torch.equal(often, attacked(0.8, restarts=4, best_iterate=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 128}, r"eps 128 is outside \(0, 10.3923\].*did you mean 128/255"),
        ({"eps": -1.0}, r"eps -1 is outside"),
        ({"eps": float("nan")}, r"eps nan is outside"),
        ({"eps": 1e4}, r"eps 10000 is outside \(0, 10.3923\]: pixels are in \[0, 1\]$"),
        ({"step": 64}, r"step 64 is outside \(0, 20.7846\].*did you mean 64/255"),
        ({"restarts": 0}, r"restarts 0 is below 1"),
        (
            {"restarts": 3, "random_start": False},
            r"restarts 3 from the clean image .*use restarts=1, or a ran",
        ),
    ],
)
def test_bad_l2_settings_are_one_line(change: dict[str, Any], message: str) -> None:
    image, label, _ = linear_batch()
    with pytest.raises(ValueError, match=message) as caught:
        pgd(Linear2(), image, label, **{**GOOD, "norm": "l2", **change})
    assert "\n" not in str(caught.value)


GOOD: dict[str, Any] = {"eps": EPS, "step": 0.02, "steps": 1, "noise": noise}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 4}, r"eps 4 is outside \(0, 1\].*did you mean 4/255"),
        ({"eps": 0.0}, r"eps 0 is outside"),
        ({"eps": torch.tensor([0.1, 0.2])}, r"eps has shape \(2,\)"),
        ({"step": 8}, r"step 8 .*did you mean 8/255"),
        ({"step": 0}, r"step 0 is outside"),
        ({"steps": -1}, r"steps -1 is negative"),
        ({"norm": "l1"}, r"norm 'l1' is not defined here; use linf or l2"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, r"seed is torch.int64 \(2,\)"),
    ],
)
def test_bad_settings_are_one_line(change: dict[str, Any], message: str) -> None:
    image, label, _ = linear_batch()
    with pytest.raises(ValueError, match=message) as caught:
        pgd(Linear2(), image, label, **{**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**62, 2**64 - 1])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    image, label, _ = linear_batch()
    result = pgd(Linear2(), image, label, **{**GOOD, "seed": seed})
    assert torch.isfinite(result.adversarial).all()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda x, y: (x * 255, y), r"outside \[0, 1\]"),
        (lambda x, y: (x - 1e-3, y), r"outside \[0, 1\]"),
        (lambda x, y: (x * float("nan"), y), r"outside \[0, 1\]"),
        (lambda x, y: ((x * 255).to(torch.uint8), y), r"torch.uint8"),
        (lambda x, y: (x[0], y), r"N x 3 x H x W"),
        (lambda x, y: (x, y[:4]), r"label is torch.int64 \(4,\)"),
        (lambda x, y: (x, y.float()), r"label is torch.float32"),
        (lambda x, y: (x, y + 1), r"labels span 1 to 2; the model has classes 0 to 1"),
        (lambda x, y: (x, y - 1), r"labels span -1 to 0"),
    ],
)
def test_bad_batch_is_one_line(alter: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    image, label, _ = linear_batch()
    with pytest.raises(ValueError, match=message):
        pgd(Linear2(), *alter(image, label), **GOOD)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda z: (z, z), r"returned tuple, not a tensor"),
        (lambda z: z[:, 0], r"must return logits N x K"),
        (lambda z: z[:3], r"for 6 images"),
        (lambda z: z / 0.0, r"NaN or infinite"),
    ],
)
def test_bad_model_is_one_line(wrap: Callable[[Tensor], Any], message: str) -> None:
    image, label, _ = linear_batch()
    model = Linear2()
    with pytest.raises(ValueError, match=message):
        pgd(lambda x: wrap(model(x)), image, label, **GOOD)


def test_unknown_start() -> None:
    with pytest.raises(ValueError, match="unknown PGD start 'zero'"):
        PGD(steps=1, step_size=0.1, start="zero")  # type: ignore[arg-type]
