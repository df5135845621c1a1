"""The train step: its cost in passes, what it computes, and what the attack inside must leave alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bits.environment import Environment, open_environment
from data.batch import START, Batch
from data.mix import smooth_one_hot
from engine.adversarial_objectives import Adversarial
from engine.fields import AttackSection
from engine.knobs import Knobs
from engine.objective import soft_cross_entropy
from engine.step import TrainStep
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


@pytest.fixture(scope="module")
def env() -> Environment:
    return open_environment("cpu")


def attacked(step: TrainStep, batch: Batch, values: Knobs) -> Tensor:
    assert isinstance(step.objective, Adversarial)
    image, target = step._inputs(batch)
    return step.objective.attack(
        image, target if step.settings.objective.mixing else batch.label, batch, values
    )


# ---- passes


def test_clean_step_is_one_forward_and_one_backward(env: Environment) -> None:
    model = cnn()
    assert count_passes(make_step(env, model), make_batch(), model) == {"forward": 1, "full": 1}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attack_adds_one_forward_and_one_input_only_backward_a_step(
    steps: int, mode: str, env: Environment
) -> None:
    attack = ATTACK.model_copy(update={"steps": steps, "mode": mode})
    model = cnn()
    found = count_passes(make_step(env, model, attack=attack), make_batch(), model)
    assert found == {"forward": 1 + steps, "input": steps, "full": 1}


# ---- loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_on_labels_is_torchs(smoothing: float) -> None:
    logits = 5 * torch.randn(16, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    label = torch.arange(16) % NUM_CLASSES
    found = soft_cross_entropy(logits, smooth_one_hot(label, num_classes=NUM_CLASSES, smoothing=smoothing))
    wanted = F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_loss_on_soft_targets_is_torchs_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, NUM_CLASSES, generator=generator).to(torch.bfloat16)
    target = torch.softmax(torch.randn(16, NUM_CLASSES, generator=generator), dim=1)
    found = soft_cross_entropy(logits, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.cross_entropy(logits.float(), target, reduction="none"))


def test_step_descends_on_the_mean_loss_and_meters_say_so(env: Environment) -> None:
    model, batch = without_norm(), make_batch()
    step = make_step(env, model, smoothing=0.1)
    image = batch.image.float() / 255
    logits = model(image)
    loss = F.cross_entropy(logits, batch.label, label_smoothing=0.1)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    wanted = [p.detach() - 0.1 * g for p, g in zip(model.parameters(), grads, strict=True)]
    step(batch, knobs(lr=0.1))
    torch.testing.assert_close([p.detach() for p in model.parameters()], wanted)
    means = step.meters.means(step.meters.snapshot())
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert means["top1"] == (logits.argmax(1) == batch.label).float().mean().item()


@pytest.mark.parametrize("attack", [None, ATTACK], ids=["clean", "pgd"])
def test_two_micro_batches_are_one_double_batch(attack: AttackSection | None, env: Environment) -> None:
    whole = make_batch(16)
    halves = [Batch(*(t[:8] for t in whole)), Batch(*(t[8:] for t in whole))]
    one, two = without_norm(), without_norm()
    assert make_step(env, one, attack=attack)(whole, knobs())
    step = make_step(env, two, attack=attack, accumulate=2)
    before = [p.detach().clone() for p in two.parameters()]
    assert not step(halves[0], knobs())
    assert all(torch.equal(p, b) for p, b in zip(two.parameters(), before, strict=True)), (
        "an update too early"
    )
    assert step(halves[1], knobs())
    torch.testing.assert_close(list(one.parameters()), list(two.parameters()), rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(p, b) for p, b in zip(two.parameters(), before, strict=True))


# ---- the attack inside


def test_adversarial_step_trains_on_the_attacked_image(env: Environment) -> None:
    batch = make_batch()
    found, wanted = without_norm(), without_norm()
    image = attacked(make_step(env, without_norm(), attack=ATTACK), batch, knobs())
    clean = batch.image.float() / 255
    assert 0 < (image - clean).abs().max() <= EPS + 1e-6
    loss_of = [F.cross_entropy(wanted(x), batch.label).item() for x in (clean, image)]
    assert loss_of[1] > loss_of[0] * 1.01
    make_step(env, found, attack=ATTACK)(batch, knobs(lr=0.1))
    grads = torch.autograd.grad(F.cross_entropy(wanted(image), batch.label), list(wanted.parameters()))
    updated = [p.detach() - 0.1 * g for p, g in zip(wanted.parameters(), grads, strict=True)]
    torch.testing.assert_close([p.detach() for p in found.parameters()], updated)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_attack_leaves_train_mode_and_gradients_as_they_were(mode: str, env: Environment) -> None:
    model = cnn()
    step = make_step(env, model, attack=ATTACK.model_copy(update={"mode": mode}))
    marks = []
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
        marks.append(parameter.grad)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    attacked(step, make_batch(), knobs())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for parameter, mark in zip(model.parameters(), marks, strict=True):
        assert parameter.grad is mark
        assert mark.eq(3.0).all()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_batchnorm_statistics_never_see_a_half_made_image(env: Environment) -> None:
    batch, model, reference = make_batch(), cnn(), cnn()
    image = attacked(make_step(env, cnn(), attack=ATTACK.model_copy(update={"steps": 3})), batch, knobs())
    reference.train()(image)
    make_step(env, model, attack=ATTACK.model_copy(update={"steps": 3}))(batch, knobs())
    wanted = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, wanted[name], msg=name)


def test_eps_zero_leaves_the_image(env: Environment) -> None:
    batch = make_batch()
    image = attacked(make_step(env, cnn(), attack=ATTACK), batch, knobs(eps=0.0))
    assert torch.equal(image, batch.image.float() / 255)


def test_half_the_eps_is_half_the_ball(env: Environment) -> None:
    batch = make_batch()
    image = attacked(make_step(env, cnn(), attack=ATTACK), batch, knobs(eps=EPS / 2))
    distance = (image - batch.image.float() / 255).abs().max().item()
    assert distance == pytest.approx(EPS / 2, abs=1e-6)


def test_clean_prob_starts_that_share_from_the_clean_image(env: Environment) -> None:
    """With a step of 0 the attacked image is the start."""
    attack = ATTACK.model_copy(update={"clean_prob": 0.5})
    batch = make_batch(32)
    image = attacked(make_step(env, cnn(), attack=attack), batch, knobs(step_size=0.0))
    moved = (image != batch.image.float() / 255).flatten(1).any(1)
    assert torch.equal(moved, batch.draw[:, START] >= 0.5)
    assert 4 < moved.sum() < 28


def test_noise_follows_the_sample_and_not_its_place(env: Environment) -> None:
    batch = make_batch()
    order = torch.tensor([7, 2, 5, 0, 1, 3, 6, 4])
    step = make_step(env, without_norm(), attack=ATTACK)
    image = attacked(step, batch, knobs(step_size=0.0))
    permuted = attacked(step, Batch(*(tensor[order] for tensor in batch)), knobs(step_size=0.0))
    assert torch.equal(permuted, image[order])
    noise = (image - batch.image.float() / 255)[:, :, 2:-2, 2:-2].flatten(1)
    assert len({tuple(row.tolist()) for row in noise}) == len(noise), "two samples share their noise"
