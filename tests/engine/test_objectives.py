"""Every objective.kind: its cost in passes, its loss by the formula, and an attack that leaves the model alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from bits.ema import Ema
from bits.environment import Environment, open_environment
from data.batch import START, Batch
from data.index import load_index
from engine.adversarial_objectives import Attacked
from engine.build import batch_layout, build_state, check_model
from engine.fields import ObjectiveSection
from engine.folder import RunFolder
from engine.free import FreeStep, _ascended
from engine.knobs import pack_knobs
from engine.log import RunLog, read_log
from engine.loop import Loop
from engine.objective import Inputs, Losses, binary_cross_entropy
from engine.passes import passes_of
from engine.recipe import load_recipe, parse_recipe
from engine.step import TrainStep
from engine.stop import StopRequest
from engine.training_attack import ATTACK_STREAM, another_class, clean_share, training_pgd
from engine.words import objective_words
from models.ghost import attacking
from models.split import SplitNorm2d, branch
from robust.noise import noise
from robust.pgd import PGD
from tests.engine.one_step import (
    ATTACK,
    EPS,
    NUM_CLASSES,
    cnn,
    count_passes,
    knobs,
    make_batch,
    make_step,
    without_norm,
)

ROOT = Path(__file__).parents[2]
BETA = 2.5
KINDS: dict[str, dict[str, Any]] = {
    "adversarial": {"kind": "adversarial"},
    "with_clean": {"kind": "adversarial", "clean_weight": 0.3},
    "trades": {"kind": "trades", "beta": BETA},
    "mart": {"kind": "mart", "beta": BETA},
    "advprop": {"kind": "advprop"},
}


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def model_of(name: str, **changes: Any) -> nn.Module:
    return cnn(**changes, **({"split_norm": True} if name == "advprop" else {}))


def of_kind(env: Environment, name: str, model: nn.Module, **attack: Any) -> TrainStep:
    return make_step(env, model, attack=ATTACK.model_copy(update=attack), **KINDS[name])


def losses_of(step: TrainStep, batch: Batch) -> tuple[Losses, Tensor]:
    """What the objective finds on `batch`, and the clean images."""
    image, target = step._inputs(batch)
    return step.objective(step.forward, Inputs(image, target, batch, knobs())), image


def attack_by_hand(step: TrainStep, batch: Batch, goal: Tensor, loss: Any, **changes: Any) -> Tensor:
    """robust.pgd.PGD on the model as it stands, by the fields of the attack."""
    attack = step.settings.objective.attack
    assert attack is not None
    pgd = PGD(steps=attack.steps, step_size=EPS, noise=noise, loss=loss, **changes)
    image, _ = step._inputs(batch)
    seed = batch.seed ^ ATTACK_STREAM
    return pgd(step.state.model, image, goal, eps=torch.tensor(EPS), seed=seed, start_u=batch.draw[:, START])


# ---- passes


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_cost_in_passes(name: str, steps: int, env: Environment) -> None:
    """With an attack of k steps, in passes over the batch: (forward, input-only backward, full backward) are
    adversarial (k+1, k, 1), with a clean_weight (k+2, k, 2), trades (k+3, k, 2), mart (k+2, k, 2), advprop (k+2, k, 2).
    """
    forwards = {"adversarial": 1, "with_clean": 2, "trades": 3, "mart": 2, "advprop": 2}[name] + steps
    model = model_of(name)
    found = count_passes(of_kind(env, name, model, steps=steps), make_batch(), model)
    assert found == {"forward": forwards, "input": steps, "full": 1 if name == "adversarial" else 2}
    section = ObjectiveSection(attack=ATTACK.model_copy(update={"steps": steps}), **KINDS[name])
    assert passes_of(section)[:3] == (found["forward"], found["input"], found["full"])


@pytest.mark.parametrize("replays", [1, 4])
def test_cost_of_free_in_passes(replays: int, env: Environment) -> None:
    """free-m: m forward and m full backward passes, which give the image's gradient too; none for the image alone."""
    model = cnn()
    step = make_step(env, model, kind="free", attack=ATTACK, replays=replays)
    assert count_passes(step, make_batch(), model) == {"forward": replays, "full": replays}
    assert passes_of(ObjectiveSection(kind="free", attack=ATTACK, replays=replays)) == (
        replays,
        0,
        replays,
        0,
    )


# ---- what is minimised


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clean_weight_mixes_two_cross_entropies(smoothing: float, env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    settings = {"attack": ATTACK, "clean_weight": 0.3, "smoothing": smoothing}
    step = make_step(env, model, kind="adversarial", **settings)
    found, image = losses_of(step, batch)
    assert found.attacked is not None
    alone = make_step(env, model, attack=ATTACK, smoothing=smoothing)
    assert torch.equal(found.attacked, losses_of(alone, batch)[0].attacked), "the attack is the same"
    clean, adversarial = (
        F.cross_entropy(model(x), batch.label, label_smoothing=smoothing, reduction="none")
        for x in (image, found.attacked)
    )
    torch.testing.assert_close(found.loss, 0.3 * clean + 0.7 * adversarial)
    torch.testing.assert_close(found.values["clean_loss"], clean)
    torch.testing.assert_close(found.values["adversarial_loss"], adversarial)


def test_trades_attacks_the_divergence_and_minimises_it(env: Environment) -> None:
    """Written out with torch's softmax and kl_div; clean images through the label, attacked ones through KL."""
    model, batch = without_norm(), make_batch()
    step = of_kind(env, "trades", model, steps=2)
    found, image = losses_of(step, batch)
    with torch.no_grad():
        clean = model(image).softmax(1)

    def divergence(logits: Tensor, p: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)

    attacked = attack_by_hand(step, batch, clean, divergence)
    torch.testing.assert_close(found.attacked, attacked)
    kl = divergence(model(attacked), model(image).softmax(1))
    wanted = F.cross_entropy(model(image), batch.label, reduction="none") + BETA * kl
    torch.testing.assert_close(found.loss, wanted)
    start = attack_by_hand(step, batch, clean, lambda logits, p: 0.0 * logits.sum(1))
    assert kl.mean() > divergence(model(start), clean).mean(), "the attack made it worse than its start"
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(loss.mean(), parameters) for loss in (found.loss, wanted)]
    torch.testing.assert_close(grads[0], grads[1])


def test_the_clean_prediction_of_trades_is_taken_in_the_mode_of_the_attack(env: Environment) -> None:
    model, batch = cnn(drop_path=0.5), make_batch()
    step = of_kind(env, "trades", model)
    image, _ = step._inputs(batch)
    assert isinstance(step.objective, Attacked)
    before = {name: b.clone() for name, b in model.named_buffers()}
    found = step.objective.attack.prediction(image)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert not found.requires_grad
    torch.testing.assert_close(found, model.eval()(image).softmax(1).detach())


def test_mart_attacks_the_label_and_boosts_it(env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    step = of_kind(env, "mart", model)
    found, image = losses_of(step, batch)
    assert found.attacked is not None
    attacked = attack_by_hand(step, batch, batch.label, lambda x, y: F.cross_entropy(x, y, reduction="none"))
    torch.testing.assert_close(found.attacked, attacked)
    p, q = model(image).softmax(1), model(attacked).softmax(1)
    for i, y in enumerate(batch.label.tolist()):
        rival = max(q[i, c].item() for c in range(NUM_CLASSES) if c != y)
        kl = sum((p[i, c] * (p[i, c] / q[i, c]).log()).item() for c in range(NUM_CLASSES))
        wanted = -math.log(q[i, y].item()) - math.log(1 - rival) + BETA * (1 - p[i, y].item()) * kl
        assert found.loss[i].item() == pytest.approx(wanted, rel=1e-4)


def test_a_mixed_target_is_what_trades_fits(env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    batch.draw[:, 0] = 0.25  # LAM
    step = make_step(env, model, kind="trades", attack=ATTACK, mixing=True)
    found, image = losses_of(step, batch)
    _, target = step._inputs(batch)
    assert set(target.unique().tolist()) >= {0.25, 0.75}
    torch.testing.assert_close(
        found.values["clean_loss"], F.cross_entropy(model(image), target, reduction="none")
    )


def test_meters_hold_the_parts(env: Environment) -> None:
    names = {
        "adversarial": (),
        "with_clean": ("clean_loss", "clean_top1", "adversarial_loss"),
        "trades": ("clean_loss", "clean_top1", "kl"),
        "mart": ("boosted_loss", "clean_top1", "kl"),
        "advprop": ("clean_loss", "clean_top1", "adversarial_loss"),
    }
    for name, own in names.items():
        model, batch = model_of(name), make_batch()
        step = of_kind(env, name, model)
        assert step.meters.names[:2] == ("loss", "top1")
        assert step.meters.names[len(step.meters.names) - len(own) :] == own
        losses, image = losses_of(of_kind(env, name, model_of(name)), batch)
        step(batch, knobs())
        means = step.meters.means(step.meters.snapshot())
        assert means["loss"] == pytest.approx(losses.loss.mean().item(), rel=1e-5)
        for each in own:
            assert means[each] == pytest.approx(losses.values[each].mean().item(), rel=1e-5)
        if name == "with_clean":
            hit = (model_of(name).train()(image).argmax(1) == batch.label).float().mean()
            assert means["clean_top1"] == hit.item()


@pytest.mark.parametrize("name", KINDS)
def test_two_micro_batches_are_one_double_batch(name: str, env: Environment) -> None:
    """AdvProp needs BatchNorm: groups of 8 images in an attack that normalises by them are the same in both."""
    is_split = name == "advprop"
    one, two = (model_of(name, norm_stats="ghost:8") if is_split else without_norm() for _ in range(2))
    mode = "train" if is_split else "eval"
    whole = make_batch(16)
    halves = [Batch(*(t[:8] for t in whole)), Batch(*(t[8:] for t in whole))]
    before = [p.detach().clone() for p in one.parameters()]
    assert of_kind(env, name, one, mode=mode)(whole, knobs())
    attack = ATTACK.model_copy(update={"mode": mode})
    step = make_step(env, two, attack=attack, accumulate=2, **KINDS[name])
    assert not step(halves[0], knobs())
    assert step(halves[1], knobs())
    torch.testing.assert_close(list(one.parameters()), list(two.parameters()), rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(p, b) for p, b in zip(two.parameters(), before, strict=True))


# ---- the attack


@pytest.mark.parametrize("mode", ["eval", "train", "groups"])
@pytest.mark.parametrize("name", KINDS)
def test_the_attack_leaves_gradients_statistics_and_modes(name: str, mode: str, env: Environment) -> None:
    model, batch = model_of(name, norm_stats="groups:2x2"), make_batch()
    step = of_kind(env, name, model, mode=mode, steps=2)
    assert isinstance(step.objective, Attacked)
    model(batch.image.float() / 255)  # statistics that say something
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image, _ = step._inputs(batch)
    goal = step.objective.attack.prediction(image) if name == "trades" else batch.label
    attacked = step.objective.attack(image, goal, batch, knobs())
    assert 0 < (attacked - image).abs().max() <= EPS + 1e-6
    assert all(module.training for module in model.modules())
    assert all(p.grad is not None and p.grad.eq(3.0).all() and p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert not [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert {m.branch for m in model.modules() if isinstance(m, SplitNorm2d)} <= {"clean"}


def test_plain_batchnorm_keeps_its_statistics_in_an_attack_in_train_mode(env: Environment) -> None:
    model, batch, reference = cnn(), make_batch(), cnn()
    step = of_kind(env, "adversarial", model, mode="train", steps=3)
    attacked = losses_of(step, batch)[0].attacked
    assert attacked is not None
    reference.train()(attacked)
    wanted = dict(reference.named_buffers())
    assert not [name for name, b in model.named_buffers() if not torch.equal(b, wanted[name])]


def test_mode_groups_attacks_by_the_statistics_of_each_group(env: Environment) -> None:
    model, batch = cnn(norm_stats="groups:2"), make_batch()
    for seed in range(5):  # the second group sees other images
        model(torch.cat([make_batch(4, seed).image.float() / 255, torch.rand(4, 3, 16, 16) ** 4]))
    found = {}
    for mode in ("eval", "groups"):
        step = of_kind(env, "adversarial", model, mode=mode)
        assert isinstance(step.objective, Attacked)
        found[mode] = step.objective.attack(step._inputs(batch)[0], batch.label, batch, knobs())
    step = of_kind(env, "adversarial", model, mode="groups")
    with attacking(model.eval()):
        wanted = attack_by_hand(
            step, batch, batch.label, lambda x, y: F.cross_entropy(x, y, reduction="none")
        )
    assert torch.equal(found["groups"], wanted)
    assert torch.equal(found["groups"][:4], found["eval"][:4]), "evaluation takes the first group's"
    assert not torch.equal(found["groups"][4:], found["eval"][4:])


def test_another_class_is_uniform_over_the_others_and_follows_the_seed() -> None:
    label = torch.arange(5).repeat(2000)
    seed = torch.randint(0, 1 << 62, label.shape, generator=torch.Generator().manual_seed(0))
    found = another_class(label, seed, 5)
    assert torch.equal(found, another_class(label, seed, 5))
    counts = torch.bincount((found - label) % 5, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] / len(label) - 0.25).abs().max() < 0.02
    assert set(another_class(torch.tensor([0, 1]), torch.tensor([3, 4]), 2).tolist()) == {0, 1}


def test_a_targeted_attack_goes_to_another_class(env: Environment) -> None:
    model, batch = without_norm(), make_batch(16)
    step = of_kind(env, "adversarial", model, targeted=True, steps=4)
    losses, image = losses_of(step, batch)
    assert losses.attacked is not None
    target = another_class(batch.label, batch.seed, NUM_CLASSES)
    wanted = attack_by_hand(step, batch, target, lambda x, y: -F.cross_entropy(x, y, reduction="none"))
    assert torch.equal(losses.attacked, wanted)
    before, after = (F.cross_entropy(model(x), target, reduction="none") for x in (image, wanted))
    assert (after < before).all()
    torch.testing.assert_close(losses.loss, F.cross_entropy(model(wanted), batch.label, reduction="none"))


def test_the_normal_start_rule_has_the_share_of_the_published_code() -> None:
    """There: noise where randn() > p. For p = 0.2 that is 42.1 %, for p = 0 one half."""
    attack = ATTACK.model_copy(update={"start_rule": "batch_normal", "clean_prob": 0.2})
    assert 1 - clean_share(attack) == pytest.approx(0.421, abs=5e-4)
    assert clean_share(attack.model_copy(update={"clean_prob": 0.0})) == 0.5
    assert clean_share(ATTACK.model_copy(update={"clean_prob": 0.2})) == 0.2
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert (normal > 0.2).float().mean().item() == pytest.approx(1 - clean_share(attack), abs=0.005)


def test_the_normal_start_rule_acts_on_the_draw(env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    step = of_kind(env, "adversarial", model, start_rule="batch_normal", clean_prob=0.2)
    for start, is_clean in ((0.57, True), (0.59, False)):
        batch.draw[:, START] = start
        pgd = training_pgd(env, step.settings.objective.attack, knobs())  # type: ignore[arg-type]
        state = pgd.init(
            step._inputs(batch)[0],
            batch.label,
            eps=torch.tensor(EPS),
            seed=batch.seed,
            start_u=batch.draw[:, START],
        )
        assert torch.equal(state.image, state.clean) == is_clean


def test_one_long_step_from_a_random_start_is_fgsm_rs(env: Environment) -> None:
    """Wong et al. 2020, their train_fgsm.py line by line: the start cut to [0,1], one signed step of 1.25 eps, the
    perturbation clamped to the ball and then to [0,1], the model in train mode."""
    model, batch = without_norm(), make_batch()
    step = of_kind(env, "adversarial", model, mode="train", step_size=1.25 * EPS)
    image, _ = step._inputs(batch)
    lower, upper = 0.0 - image, 1.0 - image
    delta = EPS * (2 * noise(batch.seed ^ ATTACK_STREAM, (3, 16, 16)) - 1)
    delta = torch.clamp(delta, lower, upper).requires_grad_()
    F.cross_entropy(model(image + delta), batch.label).backward()
    assert delta.grad is not None
    delta = torch.clamp(delta + 1.25 * EPS * torch.sign(delta.grad), -EPS, EPS)
    wanted = image + torch.clamp(delta, lower, upper).detach()
    assert isinstance(step.objective, Attacked)
    found = step.objective.attack(image, batch.label, batch, knobs(step_size=1.25 * EPS))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7)


# ---- AdvProp


def test_advprop_sends_each_half_through_its_norm(env: Environment) -> None:
    batch = make_batch()
    model, main, auxiliary = model_of("advprop"), cnn(), cnn()
    step = of_kind(env, "advprop", model)
    losses, image = losses_of(step, batch)
    assert losses.attacked is not None
    with torch.no_grad():
        clean, attacked = main.train()(image), auxiliary.train()(losses.attacked)
    torch.testing.assert_close(losses.logits.detach(), attacked)
    ce = [F.cross_entropy(x, batch.label, reduction="none") for x in (clean, attacked)]
    torch.testing.assert_close(losses.loss.detach(), (ce[0] + ce[1]) / 2)
    found = dict(model.named_buffers())
    for norm, reference in (("main", main), ("auxiliary", auxiliary)):
        statistics = [n for n, _ in reference.named_buffers() if "running" in n]
        assert statistics
        for name in statistics:
            parent, _, leaf = name.rpartition(".")
            torch.testing.assert_close(found[f"{parent}.{norm}.{leaf}"], reference.get_buffer(name), msg=name)


def test_advprop_attacks_through_the_auxiliary_norm_and_evaluates_through_main(env: Environment) -> None:
    model, batch = model_of("advprop"), make_batch()
    generator = torch.Generator().manual_seed(0)
    for norm in [m for m in model.modules() if isinstance(m, SplitNorm2d)]:
        norm.auxiliary.running_mean = torch.randn(norm.auxiliary.num_features, generator=generator)
    other = model_of("advprop")
    other.load_state_dict(model.state_dict())
    attacked = losses_of(of_kind(env, "advprop", model), batch)[0].attacked
    by_hand = of_kind(env, "advprop", other)
    other.eval()
    for side in ("clean", "adversarial"):
        with branch(other, side):  # type: ignore[arg-type]
            wanted = attack_by_hand(
                by_hand, batch, batch.label, lambda x, y: F.cross_entropy(x, y, reduction="none")
            )
        assert (attacked is not None and torch.equal(attacked, wanted)) == (side == "adversarial")


def test_a_split_norm_needs_a_batchnorm() -> None:
    base = ROOT / "recipes/quickstart/cnn_adv.yaml"
    overrides = ["objective.kind=advprop", "model.split_norm=true"]
    assert check_model(load_recipe(base, overrides)).name == "small_cnn"
    with pytest.raises(ValueError, match=r"small_vit.*has no BatchNorm to split"):
        check_model(load_recipe(base, [*overrides, "model.name=small_vit", "model.args={}"]))


# ---- free


@pytest.mark.parametrize("random_start", [False, True])
def test_free_is_the_loop_of_the_paper(random_start: bool, env: Environment) -> None:
    """Shafahi et al. 2019, algorithm 1 on one batch: the same backward gives both gradients, m times."""
    batch, replays, lr = make_batch(), 3, 0.1
    found, wanted = without_norm(), without_norm()
    attack = ATTACK.model_copy(update={"random_start": random_start})
    step = make_step(env, found, kind="free", attack=attack, replays=replays, preview=8)
    assert isinstance(step, FreeStep)
    assert step(batch, knobs(lr=lr))
    image = batch.image.float() / 255
    delta = torch.zeros_like(image)
    if random_start:
        delta = EPS * (2 * noise(batch.seed ^ ATTACK_STREAM, (3, 16, 16)) - 1)
    delta = (image + delta).clamp(0, 1) - image
    losses = []
    for _ in range(replays):
        delta.requires_grad_()
        loss = F.cross_entropy(wanted(image + delta), batch.label)
        *grads, of_image = torch.autograd.grad(loss, [*wanted.parameters(), delta])
        losses.append(loss.item())
        last = (image + delta).detach()
        with torch.no_grad():
            for parameter, grad in zip(wanted.parameters(), grads, strict=True):
                parameter -= lr * grad
        delta = (delta.detach() + EPS * of_image.sign()).clamp(-EPS, EPS)
        delta = (image + delta).clamp(0, 1) - image
    torch.testing.assert_close(list(found.parameters()), list(wanted.parameters()), rtol=1e-4, atol=1e-6)
    means = step.meters.means(step.meters.snapshot())
    assert means["loss"] == pytest.approx(sum(losses) / replays, rel=1e-4), "the mean over the replays"
    assert step.preview is not None
    assert torch.equal(step.preview[1], (last * 255).round().to(torch.uint8)), "the last images trained on"


def test_free_survives_a_gradient_that_is_not_finite(env: Environment) -> None:
    """An fp16 overflow: the scaler leaves the update out, and the images must stay images."""
    batch, image = make_batch(), torch.rand(8, 3, 16, 16)
    for norm in ("linf", "l2"):
        attack = ATTACK.model_copy(update={"norm": norm})
        pgd = training_pgd(env, attack, knobs())
        state = pgd.init(
            image, batch.label, eps=torch.tensor(EPS), seed=batch.seed, start_u=batch.draw[:, START]
        )
        gradient = torch.full_like(image, float("nan"))
        gradient[4:] = float("inf")
        moved = _ascended(pgd, state, gradient)
        assert moved.isfinite().all()
        assert torch.equal(moved[:4], pgd.threat.project(state.image, image, torch.tensor(EPS))[:4])


# ---- bce


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_timms(smoothing: float, env: Environment) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(16, NUM_CLASSES, generator=generator)
    soft = torch.softmax(torch.randn(16, NUM_CLASSES, generator=generator), dim=1)
    wanted = BinaryCrossEntropy(smoothing=smoothing, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, soft), wanted(logits, soft).mean(1))
    mean = BinaryCrossEntropy(smoothing=smoothing)
    model, batch = without_norm(), make_batch()
    losses, image = losses_of(make_step(env, model, loss="bce", smoothing=smoothing), batch)
    torch.testing.assert_close(losses.loss.mean(), mean(model(image), batch.label))
    assert binary_cross_entropy(logits.to(torch.bfloat16), soft).dtype == torch.float32


def test_bce_trains_on_the_images_that_cross_entropy_attacks(env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    ce, bce = (losses_of(make_step(env, model, attack=ATTACK, loss=name), batch)[0] for name in ("ce", "bce"))
    assert ce.attacked is not None
    assert bce.attacked is not None
    assert torch.equal(ce.attacked, bce.attacked)
    onehot = F.one_hot(batch.label, NUM_CLASSES).float()
    wanted = F.binary_cross_entropy_with_logits(model(bce.attacked), onehot, reduction="none").mean(1)
    torch.testing.assert_close(bce.loss, wanted)


# ---- a run


def test_free_counts_the_warm_up_of_its_average_in_updates(env: Environment) -> None:
    """timm's weight at the n-th update, which here is the n-th replay: the average by hand, over two batches."""
    replays, decay = 3, 0.7
    model = cnn()
    step = make_step(env, model, kind="free", attack=ATTACK, replays=replays, ema_warmup=True)
    ema = step.state.ema = Ema(model, decay)
    wanted, update, count = [p.detach().double() for p in model.parameters()], ema.update_, [0]

    def follow(live: nn.Module, weight: Tensor | None = None) -> None:
        share = max(1.0 - decay, (count[0] + 1) ** (-2 / 3))
        count[0] += 1
        for mean, now in zip(wanted, live.parameters(), strict=True):
            mean.add_(share * (now.detach().double() - mean))
        update(live, weight)

    ema.update_ = follow  # type: ignore[method-assign]
    for number in range(2):
        step(make_batch(seed=number), pack_knobs(lr=0.1, eps=EPS, step_size=EPS, step=number, ema_weight=0.5))
    assert count == [2 * replays]
    for mean, shadow in zip(wanted, ema.module.parameters(), strict=True):
        torch.testing.assert_close(shadow.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["trades", "free"])
def test_a_run_logs_what_its_objective_measures(
    name: str, few_digits: Path, tmp_path: Path, env: Environment
) -> None:
    """Free training's steps are batches, each of `replays` updates: the optimizer has counted them."""
    attack = {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1}
    recipe = parse_recipe(
        {
            "data": {"train": str(few_digits), "image_size": 16, "num_workers": 0},
            "model": {"name": "small_cnn", "args": {"width": 8}},
            "optim": {"lr": 1e-3, "ema": 0.9},
            "objective": {"kind": name, "attack": attack, "replays": 3},
            "run": {"epochs": 1, "batch_size": 16, "report_every": 1, "max_steps": 2},
        }
    )
    index, layout = load_index(few_digits), batch_layout(16, env)
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    loop = Loop(
        env=env,
        recipe=recipe,
        state=build_state(recipe, env, num_classes=10, layout=layout),
        index=index,
        layout=layout,
        folder=folder,
        log=RunLog(tmp_path / "log.jsonl"),
        stop=StopRequest(),
        evaluate=lambda epoch: [],
    )
    loop.run()
    entries = [entry for entry in read_log(tmp_path / "log.jsonl") if entry["event"] == "train"]
    assert [entry["step"] for entry in entries] == [1, 2]
    own = {"clean_loss", "clean_top1", "kl"}
    assert {key for key in entries[0] if key in own} == (own if name == "trades" else set())
    assert all(math.isfinite(entry["loss"]) for entry in entries)
    counted = {int(group["step"]) for group in loop.state.optimizer.param_groups}
    assert counted == {6 if name == "free" else 2}


# ---- recipes


ADVERSARIAL = "objective.attack={norm: linf, eps: 8/255, step_size: 8/255, steps: 1"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.kind=fast"], ["objective.kind is 'fast'", "'trades'", "'free'"]),
        (["objective.kind=mart", "objective.attack=null"], ["kind is mart but objective.attack is null"]),
        (["objective.loss=mse"], ["objective.loss is 'mse'", "'ce' or 'bce'"]),
        (["objective.clean_weight=1.0"], ["objective.clean_weight is 1.0", "less than 1"]),
        (["objective.clean_weight=-0.1"], ["objective.clean_weight is -0.1"]),
        (["objective.clean_weight=0.5", "objective.kind=mart"], ["clean_weight is 0.5", "kind is mart"]),
        (["objective.beta=-1"], ["objective.beta is -1"]),
        (["objective.replays=0"], ["objective.replays is 0"]),
        (
            ["objective.kind=trades", "objective.attack.random_start=false"],
            ["no gradient", "random_start=true"],
        ),
        (["objective.kind=trades", "objective.attack.clean_prob=0.2"], ["no gradient", "clean_prob=0"]),
        (["objective.kind=trades", "objective.attack.start_rule=batch_normal"], ["start_rule=sample"]),
        (["objective.kind=trades", "objective.attack.targeted=true"], ["targeted is true", "has no label"]),
        (["objective.kind=trades", "objective.loss=bce"], ["objective.loss is bce", "use loss=ce"]),
        (["objective.kind=mart", "objective.mixup=0.2"], ["needs one label", "mixup=0"]),
        (["objective.kind=mart", "objective.smoothing=0.1"], ["objective.smoothing is 0.1", "set it to 0"]),
        (["objective.kind=free", "objective.attack.steps=3"], ["steps is 3", "set steps=1"]),
        (["objective.kind=free", "objective.warmup.steps=[[0, 1]]"], ["warmup.steps is given", "drop it"]),
        (["objective.kind=free", "optim.accumulate=2"], ["optim.accumulate is 2", "set it to 1"]),
        (
            ["objective.kind=free", "objective.attack.targeted=true"],
            ["targeted is true", "weights' own loss"],
        ),
        (["objective.kind=advprop"], ["split_norm is false", "set split_norm=true"]),
        (["model.split_norm=true"], ["split_norm is true", "set split_norm=false"]),
        (["model.args.split_norm=true"], ["split_norm, which is set by other fields"]),
        (["model.split_norm=1"], ["true or false"]),
        (["objective.attack.mode=groups"], ["mode is groups", "norm_stats is ghost:32"]),
        (["objective.attack.mode=test"], ["'eval', 'train' or 'groups'"]),
        (["objective.attack.targeted=1"], ["true or false"]),
        (["objective.attack.start_rule=normal"], ["'sample' or 'batch_normal'"]),
        (
            ["objective.attack.start_rule=batch_normal", "objective.attack.random_start=false"],
            ["no start to choose", "random_start=true"],
        ),
        (["model.norm_stats=groups:2x8", "objective.kind=trades"], ["groups:2x8", "without the x"]),
        (["model.norm_stats=groups:2x8", "objective.kind=free"], ["take turns"]),
        (["model.norm_stats=groups:2x8", "objective.clean_weight=0.5"], ["take turns"]),
        (["model.norm_stats=groups:0"], ["'groups:0'"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        load_recipe(ROOT / "recipes/quickstart/cnn_adv.yaml", overrides)
    line = str(error.value)
    assert "\n" not in line
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.clean_weight=0.5", "objective.loss=bce", "objective.mixup=0.2"],
        ["objective.kind=trades", "objective.mixup=0.8", "objective.smoothing=0.1", "objective.beta=0"],
        ["objective.kind=mart", "objective.attack.targeted=true", "objective.smoothing=0"],
        ["objective.kind=advprop", "model.split_norm=true", "model.norm_stats=groups:2x8"],
        ["objective.kind=free", "objective.replays=8", "objective.attack.clean_prob=0.2"],
        ["model.norm_stats=groups:2x8:modulo:average", "objective.attack.mode=groups"],
        ["objective.attack.start_rule=batch_normal", "objective.attack.clean_prob=0.2"],
    ],
)
def test_what_can_be_is_taken(overrides: list[str]) -> None:
    assert load_recipe(ROOT / "recipes/quickstart/cnn_adv.yaml", overrides).objective.attack is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "trades"}, "trades, beta 6: PGD-1, linf, eps 8/255, step 8/255, random start"),
        ({"kind": "free"}, "free, 4 replays: PGD-1, linf,"),
        ({"kind": "adversarial", "clean_weight": 0.5}, "adversarial, clean weight 0.5: PGD-1,"),
    ],
)
def test_an_objective_in_words(settings: dict[str, Any], words: str) -> None:
    assert objective_words(ObjectiveSection(attack=ATTACK, **settings)).startswith(words)
