"""best_iterate and restarts: what they keep, against every iterate judged by hand, and what they cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.best import stronger, unjudged
from robust.noise import noise
from robust.pgd import PGD, State, another_seed, cross_entropy
from robust.threat import THREATS, Linf

EPS = {"linf": 0.08, "l2": 0.7}
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
Images = tuple[Tensor, Tensor]


def attack_of(norm: str, **settings: Any) -> PGD:
    """Steps as long as the radius: the loss goes up and down, so the last iterate is seldom the strongest."""
    return PGD(**{"steps": 4, "step_size": EPS[norm], "noise": noise, "threat": THREATS[norm], **settings})


class Hilly(nn.Module):
    """A rough landscape, hills much smaller than the ball: any iterate may be the strongest one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(108, 40, generator=generator) * 3)
        self.second = nn.Parameter(torch.randn(40, 5, generator=generator) / 40**0.5)
        self.bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, image: Tensor) -> Tensor:
        return torch.sin(image.flatten(1) @ self.first) @ self.second + self.bias


@pytest.fixture(scope="module")
def hilly() -> nn.Module:
    return Hilly()


@pytest.fixture(scope="module")
def hills(hilly: nn.Module) -> Images:
    """Random images, of which the model is right about most and wrong about some."""
    image = torch.rand(200, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        label = hilly(image).argmax(1)
    return image, torch.where(torch.arange(200) % 10 == 0, (label + 1) % 5, label)


def seeds(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64) * 104_729 + 5


def run(attack: PGD, norm: str, predict: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return attack(predict, image, label, eps=torch.tensor(EPS[norm]), seed=seeds(len(image)))


def iterates(attack: PGD, norm: str, predict: nn.Module, images: Images, seed: Tensor) -> list[Tensor]:
    """Start, and what is there after each step, of an attack that keeps its last iterate."""
    state = attack.init(*images, eps=torch.tensor(EPS[norm]), seed=seed)
    found = [state.image]
    for _ in range(attack.steps):
        state = attack.step(predict, state)
        found.append(state.image)
    return found


def order(predict: nn.Module, image: Tensor, label: Tensor) -> list[tuple[bool, float]]:
    with torch.no_grad():
        logits = predict(image)
    losses = F.cross_entropy(logits, label, reduction="none")
    return list(zip((logits.argmax(1) != label).tolist(), losses.tolist(), strict=True))


def strongest(predict: nn.Module, candidates: list[Tensor], label: Tensor) -> tuple[Tensor, list[int]]:
    """Per image the candidate that is wrong and of highest loss, by sorting on the host; and which it was."""
    orders = [order(predict, image, label) for image in candidates]
    chosen = [max(range(len(orders)), key=lambda c: orders[c][i]) for i in range(len(label))]
    return torch.stack([candidates[c][i] for i, c in enumerate(chosen)]), chosen


# ---- what is kept


@NORMS
def test_best_iterate_is_the_strongest_of_all(norm: str, hilly: nn.Module, hills: Images) -> None:
    image, label = hills
    found = run(attack_of(norm, best_iterate=True), norm, hilly, image, label)
    candidates = iterates(attack_of(norm), norm, hilly, hills, seeds(len(label)))
    wanted, chosen = strongest(hilly, candidates, label)
    assert torch.equal(found, wanted)
    assert set(chosen) == set(range(5)), "start, last and all between are the strongest of some image"


@NORMS
@pytest.mark.parametrize("best_iterate", [False, True])
def test_restarts_keep_the_strongest_of_what_each_gives(
    norm: str, best_iterate: bool, hilly: nn.Module, hills: Images
) -> None:
    image, label = hills
    found = run(attack_of(norm, restarts=3, best_iterate=best_iterate), norm, hilly, image, label)
    single, candidates, seed = attack_of(norm, best_iterate=best_iterate), [], seeds(len(label))
    for _ in range(3):
        candidates.append(single(hilly, image, label, eps=torch.tensor(EPS[norm]), seed=seed))
        seed = another_seed(seed)
    wanted, chosen = strongest(hilly, candidates, label)
    assert torch.equal(found, wanted)
    assert set(chosen) == {0, 1, 2}
    assert torch.equal(candidates[0], run(attack_of(norm, best_iterate=best_iterate), norm, hilly, *hills))


@NORMS
def test_stronger_settings_are_never_weaker(norm: str, hilly: nn.Module, hills: Images) -> None:
    image, label = hills

    def orders(**settings: Any) -> list[tuple[bool, float]]:
        return order(hilly, run(attack_of(norm, **settings), norm, hilly, image, label), label)

    last, best = orders(), orders(best_iterate=True)
    few, many = orders(restarts=2), orders(restarts=5)
    both = orders(restarts=5, best_iterate=True)
    for weaker, stronger_one in ((last, best), (last, few), (few, many), (many, both), (best, both)):
        assert all(a <= b for a, b in zip(weaker, stronger_one, strict=True))
        assert sum(a < b for a, b in zip(weaker, stronger_one, strict=True)) > 10

    def num_wrong(order_of: list[tuple[bool, float]]) -> int:
        return sum(wrong for wrong, _ in order_of)

    assert num_wrong(last) < num_wrong(best) <= num_wrong(both)
    assert num_wrong(last) < num_wrong(many)


@NORMS
def test_kept_images_are_inside_and_repeatable(norm: str, hilly: nn.Module, hills: Images) -> None:
    image, label = hills
    attack = attack_of(norm, restarts=2, best_iterate=True)
    found = run(attack, norm, hilly, image, label)
    change = (found - image).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.double().square().sum(1).sqrt()
    assert (length <= EPS[norm] * 1.00001).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, run(attack, norm, hilly, image, label))
    part = attack(
        hilly, image[50:90], label[50:90], eps=torch.tensor(EPS[norm]), seed=seeds(len(label))[50:90]
    )
    torch.testing.assert_close(part, found[50:90], rtol=0, atol=1e-3)  # the hills magnify rounding


def test_soft_targets_are_judged_by_their_largest_class(hilly: nn.Module, hills: Images) -> None:
    image, label = hills
    soft = 0.9 * F.one_hot(label, 5).float() + 0.02
    attack = attack_of("linf", best_iterate=True)
    found = run(attack, "linf", hilly, image, soft)
    state = attack.init(image, soft, eps=torch.tensor(EPS["linf"]), seed=seeds(len(label)))
    for _ in range(4):
        state = attack.step(hilly, state)
    state = attack.judge(hilly, state)
    assert torch.equal(attack.finish(state), found)
    assert state.best is not None
    with torch.no_grad():
        logits = hilly(found)
    assert torch.equal(state.best.wrong, logits.argmax(1) != label)
    torch.testing.assert_close(state.best.loss, cross_entropy(logits, soft), rtol=1e-5, atol=1e-5)
    assert 0 < state.best.wrong.sum() < len(label)


def test_order_of_two_iterates_by_hand() -> None:
    """label 0 everywhere; each column one case."""
    old, new = torch.zeros(6, 3, 1, 1), torch.ones(6, 3, 1, 1)
    nan = torch.nan
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    target = torch.zeros(6, dtype=torch.int64)
    first = torch.tensor([right, right, wrong, wrong, right, wrong])
    second = torch.tensor([wrong, right, right, wrong, right, wrong])
    losses = torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0, 1.0]), torch.tensor([0.5, 2.0, 9.0, 2.0, nan, 1.0])
    best = stronger(unjudged(old), old, first, target, losses[0])
    assert best.wrong.tolist() == [False, False, True, True, False, True]
    assert best.loss.tolist() == losses[0].tolist()
    after = stronger(best, new, second, target, losses[1])
    # wrong beats right; higher loss; right never beats wrong; higher loss; NaN never wins; a draw stays
    assert after.image[:, 0, 0, 0].tolist() == [1, 1, 0, 1, 0, 0]
    assert after.wrong.tolist() == [True, False, True, True, False, True]
    assert after.loss.tolist() == [0.5, 2.0, 1.0, 2.0, 1.0, 1.0]
    assert best.loss.tolist() == losses[0].tolist(), "pure: the old one is as it was"


def test_a_model_that_gives_nan_leaves_the_start() -> None:
    image, label = torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    attack = attack_of("l2", restarts=2, best_iterate=True, loss=lambda z, y: z[:, 0] * torch.nan)
    found = run(attack, "l2", lambda x: x.flatten(1), image, label.fill_(0))  # type: ignore[arg-type]
    assert torch.isfinite(found).all()
    assert ((found - image).flatten(1).norm(dim=1) <= EPS["l2"] * 1.00001).all()


def test_clean_prob_acts_on_the_first_restart_alone(hilly: nn.Module, hills: Images) -> None:
    image, label = hills
    attack = attack_of("linf", steps=0, restarts=2, clean_prob=1.0)
    found = attack(
        hilly,
        image,
        label,
        eps=torch.tensor(EPS["linf"]),
        seed=seeds(len(label)),
        start_u=torch.zeros(len(label)),
    )
    random = Linf().random_start(image, torch.tensor(EPS["linf"]), noise, another_seed(seeds(len(label))))
    wanted, chosen = strongest(hilly, [image, random], label)
    assert torch.equal(found, wanted)
    assert set(chosen) == {0, 1}


def test_seeds_of_restarts_differ() -> None:
    seed = torch.cat([torch.arange(1000), torch.randint(-(1 << 62), 1 << 62, (1000,))])
    seen = [seed]
    for _ in range(9):
        seen.append(another_seed(seen[-1]))
    low = torch.cat(seen) & ((1 << 62) - 1)  # the bits that the noise uses
    assert len(low.unique()) == len(low)
    assert seen[1].dtype == torch.int64
    assert int(another_seed(torch.tensor(1))) == 6364136223846793005 + 1442695040888963407


# ---- what it costs, and what it must not touch


class Passes:
    """A model that counts its forward passes with and without a gradient, and the backward ones."""

    def __init__(self) -> None:
        self.with_gradient = self.without = self.backward = 0
        self.weight = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))

    def __call__(self, image: Tensor) -> Tensor:
        if image.requires_grad and torch.is_grad_enabled():
            self.with_gradient += 1
            image.register_hook(self._count)
        else:
            self.without += 1
        return image.flatten(1) @ self.weight

    def _count(self, gradient: Tensor) -> None:
        self.backward += 1


@NORMS
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (4, 0)),
        ({"best_iterate": True}, (4, 1)),
        ({"restarts": 3}, (12, 3)),
        ({"restarts": 3, "best_iterate": True}, (12, 3)),
        ({"steps": 0, "best_iterate": True}, (0, 1)),
    ],
)
def test_passes(norm: str, settings: dict[str, Any], wanted: tuple[int, int]) -> None:
    model = Passes()
    run(attack_of(norm, **settings), norm, model, torch.rand(4, 3, 4, 4), torch.arange(4) % 3)  # type: ignore[arg-type]
    assert (model.with_gradient, model.without) == wanted
    assert model.backward == wanted[0]


def test_the_attack_of_training_is_what_it_was(hilly: nn.Module, hills: Images) -> None:
    """restarts 1 and no best iterate: the plain loop, bit for bit, with nothing more in its state."""
    image, label = hills
    attack = attack_of("linf", steps=3, step_size=0.03)
    eps = torch.tensor(EPS["linf"])
    x = (image + eps * (2.0 * noise(seeds(len(label)), tuple(image.shape[1:])) - 1.0)).clamp(0, 1)
    state = attack.init(image, label, eps=eps, seed=seeds(len(label)))
    assert state.best is None
    for _ in range(3):
        assert torch.equal(state.image, x)
        state = attack.step(hilly, state)
        leaf = x.clone().requires_grad_(True)
        loss = F.cross_entropy(hilly(leaf), label, reduction="sum")
        gradient = torch.autograd.grad(loss, leaf)[0]
        sign = torch.where(gradient.abs() < 1e-6, (state.image - x).sign(), gradient.sign())
        x = torch.clamp(x + 0.03 * sign, (image - eps).clamp(min=0), (image + eps).clamp(max=1))
    assert attack.finish(state) is state.image
    assert state.best is None


@NORMS
def test_parts_are_pure_and_of_fixed_shape(norm: str, hilly: nn.Module, hills: Images) -> None:
    image, label = hills[0][:8], hills[1][:8]
    cuts: list[int] = []
    attack = attack_of(norm, restarts=2, best_iterate=True, cut=lambda: cuts.append(1))
    eps, seed = torch.tensor(EPS[norm]), seeds(8)
    whole = attack(hilly, image, label, eps=eps, seed=seed)
    assert len(cuts) == 2 * (1 + 4 + 1)  # start, steps and judging of each restart

    def shapes(state: State) -> list[tuple[Any, ...]]:
        assert state.best is not None
        return [(tuple(t.shape), t.dtype) for t in (state.image, *state.best)]

    state = attack.init(image, label, eps=eps, seed=seed)
    parts: list[Callable[[State], State]] = [
        *([lambda s: attack.step(hilly, s)] * 4),
        lambda s: attack.judge(hilly, s),
        lambda s: attack.restart(s, seed=another_seed(seed)),
        *([lambda s: attack.step(hilly, s)] * 4),
        lambda s: attack.judge(hilly, s),
    ]
    for part in parts:
        assert state.best is not None
        before = [t.clone() for t in (state.image, *state.best)]
        after = part(state)
        assert all(torch.equal(a, b) for a, b in zip((state.image, *state.best), before, strict=True))
        assert shapes(after) == shapes(state)
        state = after
    assert torch.equal(attack.finish(state), whole)
    assert not whole.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_images(dtype: torch.dtype, trained: nn.Module, held_out: Images) -> None:
    attack = attack_of("l2", restarts=2, best_iterate=True)
    image, label = held_out[0].to(dtype), held_out[1]

    def predict(x: Tensor) -> Tensor:
        return trained(x.float()).to(dtype)  # type: ignore[no-any-return]

    found = run(attack, "l2", predict, image, label)  # type: ignore[arg-type]
    assert found.dtype == dtype
    length = (found.float() - image.float()).flatten(1).norm(dim=1)
    assert (length < EPS["l2"] + torch.finfo(dtype).eps * 192**0.5).all()
    full = run(attack, "l2", trained, *held_out)
    with torch.no_grad():
        shares = [(trained(x.float()).argmax(1) == label).float().mean() for x in (found, full)]
    assert 0.05 < shares[1] < 0.95
    assert abs(shares[0] - shares[1]) < 0.03


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"restarts": 0}, "PGD restarts 0 is below 1; use 1"),
        ({"restarts": -2}, "PGD restarts -2 is below 1"),
        (
            {"restarts": 2, "start": "clean"},
            "restarts 2 from the clean image would all be equal; use restarts=1",
        ),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack_of("linf", **settings)
