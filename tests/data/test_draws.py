"""Draws do not depend on the layout, follow their distributions, and state the box's true area."""

import numpy as np
import pytest
from scipy import stats

from data.batch import BOX_X0, BOX_X1, BOX_Y0, BOX_Y1, CUTMIX, LAM, MIX_ON, NUM_DRAWS, START
from data.draws import MixSettings, draw_eval, draw_train

BOTH = MixSettings(mixup_alpha=0.8, cutmix_alpha=1.0, group=2)


def draw(
    positions: np.ndarray, settings: MixSettings, *, seed: int = 0, epoch: int = 0, size: int = 224
) -> np.ndarray:
    return draw_train(positions, settings, seed=seed, epoch=epoch, batch_start=0, image_size=size)


def test_a_share_of_the_batch_gets_the_same_rows() -> None:
    positions = np.arange(64)
    whole = draw(positions, BOTH)
    assert whole.dtype == np.float32
    assert whole.shape == (64, NUM_DRAWS)
    for start in range(0, 64, 8):
        assert np.array_equal(draw(positions[start : start + 8], BOTH), whole[start : start + 8])


def test_group_none_is_one_draw_per_global_batch() -> None:
    settings = MixSettings(mixup_alpha=0.8)
    first = draw_train(np.arange(8), settings, seed=0, epoch=0, batch_start=0, image_size=32)
    later = draw_train(np.arange(8, 16), settings, seed=0, epoch=0, batch_start=0, image_size=32)
    following = draw_train(np.arange(16, 24), settings, seed=0, epoch=0, batch_start=16, image_size=32)
    assert len({*first[:, LAM], *later[:, LAM]}) == 1
    assert following[0, LAM] != first[0, LAM]
    assert len(set(first[:, START])) == 8


def test_one_start_for_a_global_batch_on_every_share_of_it() -> None:
    settings = MixSettings(mixup_alpha=0.8, one_start=True)
    for epoch in (0, 1):
        parts = [
            draw_train(np.arange(i, i + 4), settings, seed=0, epoch=epoch, batch_start=8, image_size=32)
            for i in (8, 12)
        ]
        assert len({*parts[0][:, START], *parts[1][:, START]}) == 1
        each = draw_train(
            np.arange(8, 12), MixSettings(mixup_alpha=0.8), seed=0, epoch=epoch, batch_start=8, image_size=32
        )
        assert np.array_equal(parts[0][:, :START], each[:, :START]), "the other draws stay"
    starts = [
        draw_train(np.array([i]), settings, seed=0, epoch=0, batch_start=i, image_size=32)[0, START]
        for i in range(0, 16000, 8)
    ]
    assert stats.kstest(starts, "uniform").pvalue > 1e-3


def test_pairs_share_their_draw() -> None:
    rows = draw(np.arange(2000), BOTH)
    assert np.array_equal(rows[0::2, :START], rows[1::2, :START])
    assert len(np.unique(rows[:, LAM])) > 500


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_lam_follows_beta(alpha: float) -> None:
    lam = draw(np.arange(0, 40000, 2), MixSettings(mixup_alpha=alpha, group=2))[:, LAM]
    # Kolmogorov-Smirnov away from the ends, where float32 lumps what lies within 6e-8 of 1. 1.95: p = 0.001.
    grid = np.linspace(0.001, 0.999, 2000)
    found = np.searchsorted(np.sort(lam), grid, side="right") / len(lam)
    assert np.abs(found - stats.beta(alpha, alpha).cdf(grid)).max() < 1.95 / len(lam) ** 0.5
    assert np.isfinite(lam).all()
    assert (lam >= 0).all()
    assert (lam <= 1).all()


def test_start_is_uniform_below_one() -> None:
    start = draw(np.arange(20000), BOTH)[:, START]
    assert stats.kstest(start, "uniform").pvalue > 1e-3
    assert (start >= 0).all()
    assert (start < 1).all()


def test_probabilities() -> None:
    settings = MixSettings(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.6, switch_prob=0.3, group=2)
    rows = draw(np.arange(0, 40000, 2), settings)
    assert abs(rows[:, MIX_ON].mean() - 0.6) < 0.015  # 20,000 draws: standard deviation 0.0035
    mixed = rows[rows[:, MIX_ON] == 1]
    assert abs(mixed[:, CUTMIX].mean() - 0.3) < 0.015
    still = rows[rows[:, MIX_ON] == 0]
    assert (still[:, LAM] == 1).all()
    assert (still[:, CUTMIX : BOX_X1 + 1] == 0).all()


def test_lam_of_cutmix_is_the_uncovered_area() -> None:
    rows = draw(np.arange(0, 4000, 2), MixSettings(cutmix_alpha=1.0, group=2), size=33).astype(np.float64)
    height, width = rows[:, BOX_Y1] - rows[:, BOX_Y0], rows[:, BOX_X1] - rows[:, BOX_X0]
    assert np.allclose(rows[:, LAM], 1 - height * width / 33**2, atol=1e-6)
    assert (rows[:, [BOX_Y0, BOX_X0]] >= 0).all()
    assert (rows[:, [BOX_Y1, BOX_X1]] <= 33).all()
    clipped = height != width
    assert 0.2 < clipped.mean() < 0.9, "centres near the edge must clip the box"


def test_unclipped_boxes_follow_timm() -> None:
    """Side 2 * (int(size * sqrt(1 - lam)) // 2) with lam ~ Beta(1,1), so (side/size)^2 is about uniform."""
    rows = draw(np.arange(0, 60000, 2), MixSettings(cutmix_alpha=1.0, group=2), size=1000)
    inside = (
        (rows[:, BOX_Y0] > 0) & (rows[:, BOX_Y1] < 1000) & (rows[:, BOX_X0] > 0) & (rows[:, BOX_X1] < 1000)
    )
    side = (rows[:, BOX_Y1] - rows[:, BOX_Y0])[inside]
    assert (side == (rows[:, BOX_X1] - rows[:, BOX_X0])[inside]).all()
    assert (side % 2 == 0).all()
    # A box of side s stays inside with chance (1-s)^2; weighing by its inverse gives back the uniform area.
    area, weight = (side / 1000) ** 2, 1 / (1 - side / 1000) ** 2
    small = side < 700
    expected = np.average(area[small] < 0.245, weights=weight[small])
    assert abs(expected - 0.5) < 0.02
    assert abs(weight[small].sum() / len(rows) - 0.49) < 0.02


@pytest.mark.parametrize("settings", [MixSettings(), MixSettings(mixup_alpha=1.0, prob=0.0)])
def test_off_means_nothing_mixed(settings: MixSettings) -> None:
    assert not settings.is_on
    rows = draw(np.arange(10), settings)
    assert np.array_equal(rows[:, :START], draw_eval(10)[:, :START])


def test_one_alpha_decides_the_operation() -> None:
    assert (draw(np.arange(100), MixSettings(cutmix_alpha=1.0, switch_prob=0.0))[:, CUTMIX] == 1).all()
    assert (draw(np.arange(100), MixSettings(mixup_alpha=1.0, switch_prob=1.0))[:, CUTMIX] == 0).all()


def test_seed_and_epoch_change_draws() -> None:
    base = draw(np.arange(10), BOTH)
    for other in (draw(np.arange(10), BOTH, seed=1), draw(np.arange(10), BOTH, epoch=1)):
        assert not np.isin(other[:, LAM], base[:, LAM]).any()
        assert not np.isin(other[:, START], base[:, START]).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixup_alpha": -1.0},
        {"cutmix_alpha": float("nan")},
        {"prob": 1.5},
        {"switch_prob": -0.1},
        {"group": 3},
    ],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        MixSettings(**wrong)
