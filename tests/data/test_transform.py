"""Evaluation equals timm pixel by pixel; training depends on its seed alone and survives every RandAugment
level."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp

from data.order import hash64, uniform
from data.transform import (
    AugmentSettings,
    EvalTransform,
    _build_randaug,
    _choose,
    _random_box,
    seeded_random,
    train_transform,
)

RANDAUG = "rand-m9-mstd0.5-inc1"


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(width).normal(0, 20, (height, width, 3))
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=2) * 80 + 140
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (256, 256), (257, 256), (300, 301), (33, 500), (100, 80), (1, 1)]
)
@pytest.mark.parametrize(
    ("crop_pct", "interpolation"), [(0.875, "bicubic"), (0.95, "bilinear"), (1.0, "bicubic")]
)
def test_eval_equals_timm(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    image = photo(*size)
    theirs = create_transform(64, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    ours = EvalTransform(crop_pct=crop_pct, interpolation=interpolation).apply(image, image_size=64)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs(image).numpy())


def test_eval_squash_equals_timm() -> None:
    theirs = create_transform(64, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", normalize=False)
    image = photo(90, 70)
    assert np.array_equal(EvalTransform(mode="squash").apply(image, image_size=64), theirs(image).numpy())


def test_eval_none_takes_only_its_size() -> None:
    image = photo(64, 64)
    found = EvalTransform(mode="none").apply(image, image_size=64)
    assert np.array_equal(found, np.asarray(image).transpose(2, 0, 1))
    with pytest.raises(ValueError, match="the image is 64x64 but resize mode 'none' takes only 32x32"):
        EvalTransform(mode="none").apply(image, image_size=32)


def test_train_depends_on_its_seed_alone() -> None:
    image, settings = photo(120, 90), AugmentSettings(randaug=RANDAUG)
    first = train_transform(image, settings, sample_seed=11, image_size=32)
    random.seed(99)
    np.random.seed(99)
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    assert np.array_equal(first, train_transform(image, settings, sample_seed=11, image_size=32))
    assert random.getstate() == state
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert first.shape == (3, 32, 32)
    assert first.dtype == np.uint8
    others = [train_transform(image, settings, sample_seed=seed, image_size=32) for seed in range(-5, 5)]
    assert len({other.tobytes() for other in others}) == 10


def test_seeded_random_restores_after_an_error() -> None:
    state = random.getstate()
    with pytest.raises(ZeroDivisionError), seeded_random(1):
        random.random() / 0
    assert random.getstate() == state


def test_crop_and_flip_without_randomness_is_a_resize() -> None:
    image = photo(50, 50)
    settings = AugmentSettings(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    found = train_transform(image, settings, sample_seed=0, image_size=20)
    assert np.array_equal(
        found, np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    )
    flipped = train_transform(
        image, AugmentSettings(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0), sample_seed=0, image_size=20
    )
    assert np.array_equal(flipped, found[:, :, ::-1])


def test_crop_boxes_follow_the_settings() -> None:
    image, settings = Image.new("RGB", (1000, 1000)), AugmentSettings(scale=(0.1, 0.4))
    boxes = [
        _random_box(image, settings, uniform(hash64(seed, "crop", np.arange(23))).tolist())
        for seed in range(3000)
    ]
    left, top, width, height = np.array(boxes).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 1000).all()
    assert (top + height <= 1000).all()
    assert stats.kstest(width * height / 1e6, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    log_ratio = np.log(width / height)
    assert stats.kstest(log_ratio, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3
    assert stats.kstest(top / (1000 - height), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (500, 1), (1, 500), (2, 300), (33, 500)])
def test_extreme_shapes_are_cropped(size: tuple[int, int]) -> None:
    for seed in range(20):
        found = train_transform(photo(*size), AugmentSettings(), sample_seed=seed, image_size=16)
        assert found.shape == (3, 16, 16)


def test_flip_happens_half_of_the_time() -> None:
    image = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, 0).repeat(3, 2))
    rising = [
        np.diff(
            train_transform(image, AugmentSettings(), sample_seed=seed, image_size=8)[0, 4].astype(int)
        ).sum()
        > 0
        for seed in range(1000)
    ]
    assert 430 < sum(rising) < 570  # standard deviation 16


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5"])
@pytest.mark.parametrize("level", range(11))
def test_every_operation_at_every_level(text: str, level: int) -> None:
    """Pillow 13 raises and Pillow 12 gives black for timm's posterize at level 10."""
    policy = _build_randaug(AugmentSettings(randaug=text, magnitude=float(level)))
    images = {
        "photo": photo(40, 30),
        "gray": Image.new("RGB", (24, 24), (150, 150, 150)),
        "bright": photo(24, 24).point(lambda v: 128 + v // 2),
    }
    assert len(policy.ops) == 15
    for op in policy.ops:
        fixed = _always(op, level)
        for name, image in images.items():
            with seeded_random(level):
                found = fixed(image)
            assert found.size == image.size
            assert found.mode == "RGB"
            if op.name != "Solarize" or level > 0:  # the plain set inverts everything at level 0
                assert np.asarray(found).max() > 0, (
                    f"{op.name} at level {level} turned the {name} image black"
                )


def _always(op: AugmentOp, level: int) -> AugmentOp:
    fixed = AugmentOp(op.name, prob=1.0, magnitude=level, hparams={**op.hparams, "magnitude_std": 0})
    fixed.level_fn, fixed.kwargs = op.level_fn, op.kwargs
    return fixed


def test_operations_are_drawn_uniformly_with_replacement() -> None:
    policy = _build_randaug(AugmentSettings(randaug=RANDAUG))
    counts = Counter(
        tuple(op.name for op in _choose(policy, uniform(hash64(seed, "ops", np.arange(2)))))
        for seed in range(9000)
    )
    singles = Counter(name for pair, count in counts.items() for name in pair for _ in range(count))
    assert stats.chisquare(list(singles.values())).pvalue > 1e-3
    assert len(singles) == 15
    assert sum(count for pair, count in counts.items() if pair[0] == pair[1]) > 450  # 600 expected


def test_weighted_operations_are_drawn_without_replacement() -> None:
    policy = _build_randaug(AugmentSettings(randaug="rand-m5-tweights"))
    pairs = [
        [op.name for op in _choose(policy, uniform(hash64(seed, "ops", np.arange(2))))]
        for seed in range(2000)
    ]
    assert all(first != second for first, second in pairs)
    share = sum(first == "Rotate" for first, _ in pairs) / 2000
    assert abs(share - 3 / sum(policy_weight.values())) < 0.05


policy_weight = {"Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "rest": 1.05}


def test_magnitude_overrides_the_string_and_fill_and_filter_arrive() -> None:
    settings = AugmentSettings(randaug=RANDAUG, magnitude=2.5, fill=(1, 2, 3), interpolation="bilinear")
    for op in _build_randaug(settings).ops:
        assert (op.magnitude, op.magnitude_std, op.prob) == (2.5, 0.5, 0.5)
        assert op.kwargs == {"fillcolor": (1, 2, 3), "resample": Image.Resampling.BILINEAR}
    assert {op.magnitude for op in _build_randaug(AugmentSettings(randaug=RANDAUG)).ops} == {9}
    assert {op.prob for op in _build_randaug(AugmentSettings(randaug="rand-m9-p0.25-inc1")).ops} == {0.25}


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.5, 0.1)},
        {"ratio": (0.0, 1.0)},
        {"flip": 2.0},
        {"randaug": "rand-m9-mst0.5"},
        {"randaug": "augmix-m3"},
        {"randaug": "rand-m9-p.25"},
        {"magnitude": 11.0},
        {"interpolation": "random"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"mode": "border"}, {"crop_pct": 1.2}, {"interpolation": "cubic"}])
def test_eval_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        EvalTransform(**wrong)
