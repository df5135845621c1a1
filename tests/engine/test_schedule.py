"""Learning rates against numbers worked by hand and against timm, augmentation values against the table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.utils.model_ema import ModelEmaV3

from data.batch import CUTMIX
from data.draws import MixSettings, draw_train
from engine.fields import WARMUP_PRESETS, AttackSection, ObjectiveSection, OptimSection, WarmupSection
from engine.schedule import AugmentValues, ema_weight, lr_at, scaled_lr, scaled_min_lr, warmup_at

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


def test_prefixes_by_hand() -> None:
    """A warm-up of 2 epochs and a cosine over 8: of t, of t - 2 over 8, of t - 2 over 6."""
    at = {"none": (2, 4, 6), "step": (2, 6, 10), "all": (2, 5, 8)}
    for prefix, epochs in at.items():
        section = optim(warmup_epochs=2.0, min_lr=0.2, warmup_prefix=prefix)
        phase = [0.25, 0.5, 0.75] if prefix == "none" else [0.0, 0.5, 1.0]
        for epoch, share in zip(epochs, phase, strict=True):
            wanted = 0.2 + 0.4 * (1 + math.cos(math.pi * share))
            assert lr_of_epoch(section, epoch, 8) == pytest.approx(wanted, rel=1e-12), (prefix, epoch)
        assert lr_of_epoch(section, 1, 8) == 0.5


def test_a_warmup_as_long_as_the_run() -> None:
    section = optim(warmup_epochs=8.0, min_lr=0.2, warmup_prefix="all")
    assert [lr_of_epoch(section, epoch, 8) for epoch in (0, 4, 8)] == [0.0, 0.5, 0.2]


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


@pytest.mark.parametrize("update", ["epoch", "epoch_late", "step"])
@pytest.mark.parametrize("prefix", ["none", "step", "all"])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_timm_for_every_option(schedule: str, prefix: str, update: str) -> None:
    """timm's warmup_prefix=True is `step`; its driver shortens the cycle for `all`. `epoch_late` is its scheduler
    stepped by the epoch that has ended, as DeiT's script does."""
    epochs, warmup, steps = 40, 5, 4
    unit = steps if update == "step" else 1
    fake = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    common = {"warmup_t": warmup * unit, "warmup_lr_init": 1e-6, "warmup_prefix": prefix != "none"}
    common |= {"t_in_epochs": update != "step"}
    length = epochs - (warmup if prefix == "all" else 0)
    timm = (
        CosineLRScheduler(fake, t_initial=length * unit, lr_min=1e-5, **common)
        if schedule == "cosine"
        else StepLRScheduler(fake, decay_t=7 * unit, decay_rate=0.1, **common)
    )
    fields = {**COSINE, "schedule": schedule, "step_epochs": 7, "update": update, "warmup_prefix": prefix}
    section = optim(**fields)
    for step in range(epochs * steps):
        if update == "step":
            timm.step_update(step)
        elif step % steps == 0:
            if update == "epoch":
                timm.step(step // steps)
            elif step:
                timm.step(step // steps - 1)
        found = lr_at(section, step, steps_per_epoch=steps, epochs=epochs, global_batch=256)
        assert found == pytest.approx(fake.param_groups[0]["lr"], rel=1e-9), step


# The recipes of the papers: field values, global batch of a forward, epochs, and the rate of chosen epochs.
ROWS: dict[str, tuple[dict[str, object], int, int, dict[int, float]]] = {
    "Res50-Align": (
        {"lr": 5e-4, "lr_base_batch": 256, "warmup_epochs": 5.0, "warmup_lr": 1e-6, "min_lr": 1e-5},
        256,
        100,
        # After the warm-up the cosine is where epoch 5 puts it, below the peak.
        {0: 1e-6, 1: 1.008e-4, 4: 4.002e-4, 5: 4.9698364e-4, 50: 2.55e-4, 99: 1.0120893e-5, 100: 1e-5},
    ),
    "DeiT-S, 100 epochs": (
        {"lr": 5e-4, "lr_base_batch": 512, "warmup_epochs": 5.0, "warmup_lr": 1e-6, "min_lr": 1e-5},
        2048,
        100,
        {0: 1e-6, 1: 4.008e-4, 4: 1.6002e-3, 5: 1.9877499e-3, 50: 1.005e-3, 99: 1.0490972e-5},
    ),
    "adversarial Res50-GELU, 128 x 4 GPUs x 8 micro-batches, factor 4 hard-coded": (
        {
            "name": "sgd",
            "lr": 0.8,
            "schedule": "step",
            "warmup_epochs": 5.0,
            "warmup_lr": 0.1,
            "accumulate": 8,
        },
        512,
        100,
        {0: 0.1, 1: 0.24, 4: 0.66, 5: 0.8, 29: 0.8, 30: 0.08, 60: 0.008, 90: 0.0008, 99: 0.0008},
    ),
    "the same, one epoch late": (
        {
            **{"name": "sgd", "lr": 0.8, "schedule": "step", "warmup_epochs": 5.0, "warmup_lr": 0.1},
            **{"update": "epoch_late", "accumulate": 8},
        },
        512,
        100,
        {
            0: 0.1,
            1: 0.1,
            2: 0.24,
            5: 0.66,
            6: 0.8,
            30: 0.8,
            31: 0.08,
            60: 0.08,
            61: 0.008,
            90: 0.008,
            91: 0.0008,
        },
    ),
    "adversarial DeiT-S": (
        {
            **{"lr": 5e-4, "lr_base_batch": 512, "accumulate": 4, "warmup_epochs": 10.0, "warmup_lr": 1e-6},
            "min_lr": 1e-5,
        },
        1024,
        100,
        {0: 1e-6, 1: 4.009e-4, 9: 3.6001e-3, 10: 3.9023578e-3, 50: 2.005e-3, 99: 1.0984412e-5},
    ),
    "Robust-ResNet": (
        {"lr": 5e-4, "lr_base_batch": 512, "warmup_epochs": 5.0, "warmup_lr": 1e-6, "min_lr": 1e-5},
        1024,
        300,
        {0: 1e-6, 1: 2.008e-4, 4: 8.002e-4, 5: 9.9932162e-4, 150: 5.05e-4, 299: 1.0027141e-5, 300: 1e-5},
    ),
    "ConvNeXt-T and Swin-T": (
        {
            **{"lr": 1e-3, "lr_base_batch": 1024, "warmup_epochs": 10.0, "warmup_lr": 0.0, "min_lr": 2.5e-7},
            "scale_all_lr": True,
        },
        4096,
        300,
        {0: 0.0, 1: 4e-4, 9: 3.6e-3, 10: 3.9890465e-3, 150: 2.0005e-3, 299: 1.1096339e-6, 300: 1e-6},
    ),
    "DeiT-S on 4096": (
        {"lr": 1e-3, "lr_base_batch": 1024, "warmup_epochs": 10.0, "warmup_lr": 1e-6, "min_lr": 1e-5},
        4096,
        100,
        {0: 1e-6, 1: 4.009e-4, 10: 3.9023578e-3, 99: 1.0984412e-5},
    ),
    "ResNet50-GELU as reported by Xu and Nevatia, 512": (
        {
            **{"name": "sgd", "lr": 0.4, "lr_base_batch": 1024, "schedule": "step", "warmup_epochs": 5.0},
            "warmup_lr": 0.1,
        },
        512,
        100,
        {0: 0.1, 1: 0.12, 4: 0.18, 5: 0.2, 30: 0.02, 99: 0.0002},
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_curves_of_the_papers(row: str) -> None:
    fields, batch, epochs, wanted = ROWS[row]
    section = optim(**{"update": "epoch", **fields})
    for epoch, lr in wanted.items():
        for step in (13 * epoch, 13 * epoch + 12):
            found = lr_at(section, step, steps_per_epoch=13, epochs=epochs, global_batch=batch)
            assert found == pytest.approx(lr, rel=1e-6), epoch


def test_wang_s_code_does_not_count_accumulation() -> None:
    """One GPU, 128 images, 8 micro-batches: 1.25e-4 where the README means 1e-3."""
    fields = {"lr": 5e-4, "lr_base_batch": 512, "accumulate": 8, "min_lr": 1e-5, "scale_all_lr": True}
    assert scaled_lr(optim(**fields), 128) == pytest.approx(1e-3, rel=1e-12)
    quirk = optim(**fields, lr_counts_accumulate=False)
    assert scaled_lr(quirk, 128) == pytest.approx(1.25e-4, rel=1e-12)
    assert scaled_min_lr(quirk, 128) == pytest.approx(2.5e-6, rel=1e-12)


def test_the_average_s_warmup_is_timms() -> None:
    theirs = ModelEmaV3(torch.nn.Linear(1, 1), decay=0.99, use_warmup=True)
    section = optim(ema=0.99, ema_warmup=True)
    for step in range(3000):
        assert 1 - ema_weight(section, step) == pytest.approx(theirs.get_decay(step + 1), rel=1e-12), step
    assert ema_weight(section, 0) == 1.0
    assert ema_weight(section, 2999) == 1.0 - 0.99
    assert {ema_weight(optim(ema=0.99), step) for step in (0, 5000)} == {1.0 - 0.99}
    assert ema_weight(optim(), 3) == 0.0


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


@given(
    step=st.integers(0, 2000),
    steps=st.integers(1, 50),
    update=st.sampled_from(["step", "epoch", "epoch_late"]),
)
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
        magnitude=None, mixup=0.8, cutmix=1.0, mix_prob=0.7, switch_prob=0.3, eps_scale=1.0, steps=0
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


def test_attack_steps_over_epochs() -> None:
    """Whole numbers, from the recipe's own where nothing is said; a line goes to the nearest."""
    attack = AttackSection(norm="linf", eps=8 / 255, step_size=4 / 255, steps=7)
    points = ((0, 1), (4, 3), (6, 7))

    def steps(**warmup: object) -> list[int]:
        section = WarmupSection.model_validate(warmup)
        objective = ObjectiveSection(kind="adversarial", attack=attack, warmup=section)
        return [warmup_at(objective, epoch).steps for epoch in range(8)]

    assert steps(steps=points) == [1, 1, 1, 1, 3, 3, 7, 7]
    assert steps(steps=points, interpolation="linear") == [1, 2, 2, 3, 3, 5, 7, 7]
    assert steps(eps=((0, 0.0),)) == [7] * 8


def test_a_switch_probability_without_cutmix_says_nothing() -> None:
    """Below its first row the table of Bai et al. has none: there cutmix is 0, and every mixed group is mixup."""
    positions = np.arange(64, dtype=np.int64)
    drawn = []
    for switch_prob in (0.0, 0.3, 1.0):
        settings = MixSettings(mixup_alpha=0.8, cutmix_alpha=0.0, switch_prob=switch_prob, group=2)
        rows = draw_train(positions, settings, seed=1, epoch=0, batch_start=0, image_size=32)
        assert not rows[:, CUTMIX].any()
        drawn.append(rows)
    assert all(np.array_equal(rows, drawn[0]) for rows in drawn)
    # What the preset says there is 0, so that it is the same number for a reader of the log too.
    objective = ObjectiveSection(mixup=0.8, warmup=WARMUP_PRESETS["bai2021"])
    assert [warmup_at(objective, epoch).switch_prob for epoch in range(7)] == [0.0] * 6 + [0.1]
