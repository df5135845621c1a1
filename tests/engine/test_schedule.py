"""Learning rates against numbers worked by hand and against timm, augmentation values against the table."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from engine.fields import WARMUP_PRESETS, AttackSection, ObjectiveSection, OptimSection, WarmupSection
from engine.schedule import AugmentValues, lr_at, scaled_lr, warmup_at

COSINE = {"lr": 0.1, "warmup_epochs": 5.0, "warmup_lr": 1e-6, "min_lr": 1e-5}


def optim(**fields: object) -> OptimSection:
    return OptimSection.model_validate({"lr": 1.0, **fields})


def lr_of_epoch(section: OptimSection, epoch: float, epochs: int, steps: int = 10) -> float:
    return lr_at(section, round(epoch * steps), steps_per_epoch=steps, epochs=epochs, global_batch=256)


def test_scaling() -> None:
    assert scaled_lr(optim(lr=5e-4), 4096) == 5e-4
    assert scaled_lr(optim(lr=5e-4, lr_base_batch=512), 1024) == pytest.approx(1e-3, rel=1e-12)
    assert scaled_lr(optim(lr=5e-4, lr_base_batch=512, accumulate=4), 1024) == pytest.approx(4e-3, rel=1e-12)
    assert scaled_lr(optim(lr=0.1, lr_base_batch=256, lr_scaling="sqrt"), 1024) == pytest.approx(
        0.2, rel=1e-12
    )


def test_scale_all_lr_scales_both_ends() -> None:
    plain = optim(**COSINE, lr_base_batch=128)
    every = optim(**COSINE, lr_base_batch=128, scale_all_lr=True)
    assert lr_of_epoch(plain, 0, 100) == 1e-6
    assert lr_of_epoch(every, 0, 100) == 2e-6
    assert lr_of_epoch(plain, 100, 100) == 1e-5
    assert lr_of_epoch(every, 100, 100) == 2e-5


def test_cosine_by_hand() -> None:
    """Warm-up from 0 to 1 over 2 epochs, cosine over 8 with the absolute epoch."""
    section = optim(warmup_epochs=2.0, min_lr=0.2)
    by_hand = {0: 0.0, 0.5: 0.25, 1: 0.5, 1.9: 0.95, 4: 0.2 + 0.4 * (1 + 0.0), 8: 0.2, 9.5: 0.2}
    by_hand[2] = 0.2 + 0.4 * (1 + math.sqrt(0.5))  # cos(pi/4), not the peak: warm-up is not subtracted
    by_hand[6] = 0.2 + 0.4 * (1 - math.sqrt(0.5))
    for epoch, expected in by_hand.items():
        assert lr_of_epoch(section, epoch, 8) == pytest.approx(expected, rel=1e-12), epoch


def test_step_decay_by_hand() -> None:
    """Bai et al. 2021, adversarial ResNets: 0.8 with a warm-up of 5 epochs from 0.1, times 0.1 every 30."""
    section = optim(lr=0.8, schedule="step", warmup_epochs=5.0, warmup_lr=0.1, update="epoch", min_lr=1e-5)
    expected = {
        0: 0.1,
        1: 0.24,
        4: 0.66,
        5: 0.8,
        29: 0.8,
        30: 0.08,
        59: 0.08,
        60: 0.008,
        90: 0.0008,
        99: 0.0008,
    }
    for epoch, lr in expected.items():
        for step in (7 * epoch, 7 * epoch + 6):
            found = lr_at(section, step, steps_per_epoch=7, epochs=100, global_batch=256)
            assert found == pytest.approx(lr, rel=1e-12), epoch


def test_constant() -> None:
    section = optim(schedule="constant", warmup_epochs=1.0)
    assert [lr_of_epoch(section, epoch, 3) for epoch in (0.0, 0.5, 1.0, 2.9, 7.0)] == [
        0.0,
        0.5,
        1.0,
        1.0,
        1.0,
    ]


def test_timm_cosine() -> None:
    fake = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    timm = CosineLRScheduler(
        fake,
        t_initial=30,
        lr_min=1e-5,
        warmup_t=5,
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=True,
    )
    for epoch in range(35):
        timm.step(epoch)
        staircase = lr_of_epoch(optim(**COSINE, update="epoch"), epoch + 0.9, 30)
        assert staircase == pytest.approx(fake.param_groups[0]["lr"], rel=1e-12), epoch


def test_timm_step() -> None:
    fake = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    timm = StepLRScheduler(
        fake, decay_t=30, decay_rate=0.1, warmup_t=5, warmup_lr_init=0.1, warmup_prefix=False
    )
    section = optim(lr=0.8, schedule="step", warmup_epochs=5.0, warmup_lr=0.1)
    for epoch in range(100):
        timm.step(epoch)
        assert lr_of_epoch(section, epoch, 100) == pytest.approx(fake.param_groups[0]["lr"], rel=1e-12), epoch


def test_timm_cosine_by_updates() -> None:
    """Per-update stepping: timm with every length multiplied by the updates of an epoch."""
    steps, fake = 7, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    timm = CosineLRScheduler(
        fake, t_initial=30 * steps, lr_min=1e-5, warmup_t=5 * steps, warmup_lr_init=1e-6, t_in_epochs=False
    )
    for step in range(31 * steps):
        timm.step_update(step)
        found = lr_at(optim(**COSINE), step, steps_per_epoch=steps, epochs=30, global_batch=256)
        assert found == pytest.approx(fake.param_groups[0]["lr"], rel=1e-9), step


@given(step=st.integers(0, 2000), steps=st.integers(1, 50), update=st.sampled_from(["step", "epoch"]))
def test_lr_stays_between_its_ends(step: int, steps: int, update: str) -> None:
    section = optim(**COSINE, update=update)
    lr = lr_at(section, step, steps_per_epoch=steps, epochs=30, global_batch=256)
    assert 1e-6 <= lr <= 0.1
    if update == "epoch":
        assert lr == lr_at(section, step // steps * steps, steps_per_epoch=steps, epochs=30, global_batch=256)


def test_epochs_of_a_broken_number_of_updates() -> None:
    """7 batches an epoch and 3 to an update: epoch 15 begins with update 35, not one later."""
    section = optim(schedule="step", step_epochs=15, step_gamma=0.5, accumulate=3)
    found = [lr_at(section, step, steps_per_epoch=7 / 3, epochs=30, global_batch=1) for step in (34, 35)]
    assert found == [1.0, 0.5]


# epoch: magnitude, mix_prob, cutmix, switch_prob (None where nothing is to switch between)
BAI2021: list[tuple[int, float, float, float | None]]
BAI2021 = [(1, 0.5, 0, None), (1, 0.6, 0, None), (2, 0.7, 0, None), (3, 0.8, 0, None), (4, 0.9, 0, None)]
BAI2021 += [
    (5, 1.0, 0, None),
    (6, 1.0, 1.0, 0.1),
    (7, 1.0, 1.0, 0.2),
    (8, 0.9, 1.0, 0.3),
    (9, 0.95, 1.0, 0.4),
]
BAI2021 += [(9, 1.0, 1.0, 0.5)] * 3


@pytest.mark.parametrize("preset", ["bai2021", "smooth"])
def test_presets(preset: str) -> None:
    objective = ObjectiveSection(mixup=0.8, warmup=WARMUP_PRESETS[preset])
    for epoch, (magnitude, mix_prob, cutmix, switch_prob) in enumerate(BAI2021):
        values = warmup_at(objective, epoch)
        dip = preset == "bai2021" or epoch not in (8, 9)
        assert values.mix_prob == pytest.approx(mix_prob if dip else 1.0), epoch
        assert (values.magnitude, values.cutmix, values.mixup) == (magnitude, cutmix, 0.8), epoch
        assert switch_prob is None or values.switch_prob == pytest.approx(switch_prob), epoch
        assert values.eps_scale == 1.0


def test_without_warmup_the_objective_counts() -> None:
    values = warmup_at(ObjectiveSection(mixup=0.8, cutmix=1.0, mix_prob=0.7, switch_prob=0.3), 4)
    assert values == AugmentValues(
        magnitude=None, mixup=0.8, cutmix=1.0, mix_prob=0.7, switch_prob=0.3, eps_scale=1.0
    )


def test_table_and_line() -> None:
    attack = AttackSection(norm="linf", eps=8 / 255, step_size=4 / 255, steps=2)
    points = ((0, 0.0), (4, 4 / 255), (6, 8 / 255))

    def scales(interpolation: str) -> list[float]:
        warmup = WarmupSection.model_validate({"interpolation": interpolation, "eps": points})
        objective = ObjectiveSection(kind="adversarial", attack=attack, warmup=warmup)
        return [warmup_at(objective, epoch).eps_scale for epoch in range(9)]

    assert scales("table") == pytest.approx([0, 0, 0, 0, 0.5, 0.5, 1, 1, 1])
    assert scales("linear") == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1, 1])
