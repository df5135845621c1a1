"""Evaluation equals timm pixel by pixel; training depends on its seed alone and survives every RandAugment
level."""

import io
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from torchvision.transforms import ColorJitter

from data.crop import NUM_CROP_NUMBERS, random_box
from data.decode import Picture
from data.jitter import Jitter
from data.order import hash64, uniform
from data.transform import (
    AugmentSettings,
    EvalTransform,
    build_randaug,
    choose_ops,
    seeded_random,
    train_transform,
)

RANDAUG = "rand-m9-mstd0.5-inc1"
GOLDEN_BOXES = [(170, 133, 175, 231), (112, 139, 264, 236), (0, 44, 438, 331)]


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(width).normal(0, 20, (height, width, 3))
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], axis=2) * 80 + 140
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def picture(image: Image.Image) -> Picture:
    """Through a lossless file."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return Picture(file.getvalue())


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


# The last four shrink by much more in height than in width: there Pillow 13 resizes vertically first.
SIZES = [(500, 375), (375, 500), (256, 256), (257, 256), (300, 301), (33, 500), (100, 80), (1, 1), (73, 74)]
SIZES += [(64, 500), (90, 400), (73, 75), (70, 73)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
def test_eval_equals_timm(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    theirs = create_transform(64, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    transform = EvalTransform(crop_pct=crop_pct, interpolation=interpolation)
    ours = transform.apply(picture(photo(*size)), image_size=64)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs(photo(*size)).numpy())


ZOO = {
    "jpeg 4:2:0": ("JPEG", "RGB", {"subsampling": 2}),
    "jpeg 4:4:4": ("JPEG", "RGB", {"subsampling": 0}),
    "progressive": ("JPEG", "RGB", {"progressive": True}),
    "gray jpeg": ("JPEG", "L", {}),
    "cmyk jpeg": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGB", {}),
    "png with alpha": ("PNG", "RGBA", {}),
    "png with a palette": ("PNG", "P", {}),
    "gray png": ("PNG", "L", {}),
    "webp": ("WEBP", "RGB", {}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
}


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (321, 87), (87, 321), (224, 224), (60, 50)])
def test_eval_of_a_file_equals_timm(kind: str, size: tuple[int, int]) -> None:
    """From the bytes: decoding and resizing, all levels equal and not only within one."""
    form, mode, options = ZOO[kind]
    file = io.BytesIO()
    photo(*size).convert(mode).save(file, form, **options)
    opened = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    for mode in ("center", "squash"):
        for interpolation in ("bicubic", "bilinear"):
            theirs = create_transform(
                112, crop_pct=0.875 if mode == "center" else 1.0, crop_mode=mode,
                interpolation=interpolation, normalize=False,
            )  # fmt: skip
            ours = EvalTransform(mode=mode, interpolation=interpolation)
            found = ours.apply(Picture(file.getvalue()), image_size=112)
            assert np.array_equal(found, theirs(opened).numpy())


def test_eval_squash_equals_timm() -> None:
    theirs = create_transform(64, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", normalize=False)
    image = photo(90, 70)
    found = EvalTransform(mode="squash").apply(picture(image), image_size=64)
    assert np.array_equal(found, theirs(image).numpy())


def test_eval_none_takes_only_its_size() -> None:
    image = photo(64, 64)
    found = EvalTransform(mode="none").apply(picture(image), image_size=64)
    assert np.array_equal(found, np.asarray(image).transpose(2, 0, 1))
    with pytest.raises(ValueError, match="the image is 64x64 but resize mode 'none' takes only 32x32"):
        EvalTransform(mode="none").apply(picture(image), image_size=32)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (40, 30), (200, 700)])
def test_train_crops_are_pils(size: tuple[int, int], interpolation: str) -> None:
    """The same box and flip; resampler pillow to the bit, torch within a level on 99.9 % of the values."""
    content = jpeg(photo(*size))
    image = Image.open(io.BytesIO(content)).convert("RGB")
    differences = []
    for seed in range(12):
        numbers = uniform(hash64(seed, "crop", np.arange(NUM_CROP_NUMBERS + 1))).tolist()
        box = random_box(*size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), numbers=numbers)
        left, top, width, height = box
        filter_ = Image.Resampling[interpolation.upper()]
        crop = image.crop((left, top, left + width, top + height)).resize((64, 64), filter_)
        if numbers[-1] < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = np.asarray(crop).transpose(2, 0, 1).astype(int)
        for resampler in ("pillow", "torch"):
            settings = AugmentSettings(interpolation=interpolation, resampler=resampler)
            found = train_transform(Picture(content), settings, sample_seed=seed, image_size=64)
            if resampler == "pillow":
                assert np.array_equal(found, expected)
            else:
                differences.append(np.abs(found - expected))
    assert (np.concatenate(differences) <= 1).mean() >= 0.999
    assert np.mean(differences) < 0.02


def test_scaled_decoding_touches_large_crops_of_jpegs_alone() -> None:
    full = AugmentSettings(scale=(0.9, 1.0), flip=0.0)
    scaled = AugmentSettings(scale=(0.9, 1.0), flip=0.0, decode="scaled")
    image = photo(400, 300)
    for size, is_equal in ((64, False), (200, True)):  # crops are at least 246 pixels high, and at most 300
        pair = [
            train_transform(Picture(jpeg(image)), s, sample_seed=1, image_size=size) for s in (full, scaled)
        ]
        assert np.array_equal(*pair) == is_equal
        assert np.abs(pair[0].astype(int) - pair[1]).mean() < 6
    pair = [train_transform(picture(image), s, sample_seed=1, image_size=64) for s in (full, scaled)]
    assert np.array_equal(*pair)


def test_train_depends_on_its_seed_alone() -> None:
    image, settings = picture(photo(120, 90)), AugmentSettings(randaug=RANDAUG)
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
    settings = AugmentSettings(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, resampler="pillow")
    found = train_transform(picture(image), settings, sample_seed=0, image_size=20)
    assert np.array_equal(
        found, np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    )
    flipped = train_transform(picture(image), replace(settings, flip=1.0), sample_seed=0, image_size=20)
    assert np.array_equal(flipped, found[:, :, ::-1])


def test_crop_boxes_are_what_they_were() -> None:
    """Golden: crops of a seed must not move between versions."""
    boxes = [
        random_box(500, 375, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3),
                   numbers=uniform(hash64(seed, "crop", np.arange(23))).tolist())
        for seed in (0, 1, -7)
    ]  # fmt: skip
    assert boxes == GOLDEN_BOXES


def test_crop_boxes_follow_the_settings() -> None:
    boxes = [
        random_box(1000, 1000, scale=(0.1, 0.4), ratio=(3 / 4, 4 / 3),
                   numbers=uniform(hash64(seed, "crop", np.arange(23))).tolist())
        for seed in range(3000)
    ]  # fmt: skip
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
        found = train_transform(picture(photo(*size)), AugmentSettings(), sample_seed=seed, image_size=16)
        assert found.shape == (3, 16, 16)


def test_flip_happens_half_of_the_time() -> None:
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 64, 0).repeat(3, 2)
    image = picture(Image.fromarray(ramp))
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
    policy = build_randaug(AugmentSettings(randaug=text, magnitude=float(level)))
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


@pytest.mark.parametrize("m", range(11))
@pytest.mark.parametrize("form", ["rand-m{}-mstd0.5-inc1", "rand-m{}-mstd0.5", "rand-m{}-inc1"])
def test_operations_are_timms_but_for_black_pictures(form: str, m: int) -> None:
    """Every operation of every set that recipes name: timm's pixels for the same draws, unless posterize leaves no bit,
    which timm's own code makes black or refuses.
    """
    settings = AugmentSettings(randaug=form.format(m))
    hparams = {"img_mean": settings.fill, "interpolation": Image.Resampling.BICUBIC}
    theirs, ours = rand_augment_transform(form.format(m), hparams), build_randaug(settings)
    assert (theirs.num_layers, theirs.choice_weights) == (ours.num_layers, ours.choice_weights)
    image = photo(40, 30)
    for their_op, our_op in zip(theirs.ops, ours.ops, strict=True):
        assert (their_op.name, their_op.prob) == (our_op.name, our_op.prob)
        for seed in range(4):
            with seeded_random(seed):
                found = our_op(image)
            assert np.asarray(found).max() > 0
            try:
                with seeded_random(seed):
                    expected = their_op(image)
            except ValueError:  # Pillow 13, of no bits
                assert our_op.name.startswith("Posterize")
                continue
            if np.asarray(expected).max() > 0:
                assert np.array_equal(np.asarray(found), np.asarray(expected)), our_op.name


def _always(op: AugmentOp, level: int) -> AugmentOp:
    fixed = AugmentOp(op.name, prob=1.0, magnitude=level, hparams={**op.hparams, "magnitude_std": 0})
    fixed.level_fn, fixed.kwargs = op.level_fn, op.kwargs
    return fixed


def test_operations_are_drawn_uniformly_with_replacement() -> None:
    policy = build_randaug(AugmentSettings(randaug=RANDAUG))
    counts = Counter(
        tuple(op.name for op in choose_ops(policy, uniform(hash64(seed, "ops", np.arange(2)))))
        for seed in range(9000)
    )
    singles = Counter(name for pair, count in counts.items() for name in pair for _ in range(count))
    assert stats.chisquare(list(singles.values())).pvalue > 1e-3
    assert len(singles) == 15
    assert sum(count for pair, count in counts.items() if pair[0] == pair[1]) > 450  # 600 expected


def test_weighted_operations_are_drawn_without_replacement() -> None:
    policy = build_randaug(AugmentSettings(randaug="rand-m5-tweights"))
    pairs = [
        [op.name for op in choose_ops(policy, uniform(hash64(seed, "ops", np.arange(2))))]
        for seed in range(2000)
    ]
    assert all(first != second for first, second in pairs)
    share = sum(first == "Rotate" for first, _ in pairs) / 2000
    assert abs(share - 3 / sum(policy_weight.values())) < 0.05


policy_weight = {"Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "rest": 1.05}


def test_magnitude_overrides_the_string_and_fill_and_filter_arrive() -> None:
    settings = AugmentSettings(randaug=RANDAUG, magnitude=2.5, fill=(1, 2, 3), interpolation="bilinear")
    for op in build_randaug(settings).ops:
        assert (op.magnitude, op.magnitude_std, op.prob) == (2.5, 0.5, 0.5)
        assert op.kwargs == {"fillcolor": (1, 2, 3), "resample": Image.Resampling.BILINEAR}
    assert {op.magnitude for op in build_randaug(AugmentSettings(randaug=RANDAUG)).ops} == {9}
    assert {op.prob for op in build_randaug(AugmentSettings(randaug="rand-m9-p0.25-inc1")).ops} == {0.25}


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
        {"resampler": "opencv"},
        {"decode": "half"},
        {"jitter_on": "gpu"},
        {"jitter": Jitter(brightness=0.4), "jitter_on": "host", "randaug": RANDAUG, "randaug_on": "device"},
        {"decode": "scaled", "resampler": "pillow"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentSettings(**wrong)


@pytest.mark.parametrize("hue", [0.0, 0.1])
def test_host_jitter_is_torchvisions_color_jitter(hue: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own transform, given our amounts and our order instead of those of torch's global generator."""
    jitter = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=hue)
    image, settings = photo(40, 30), AugmentSettings(flip=1.0, jitter=jitter)
    orders = set()
    for seed in range(12):
        plain = train_transform(
            picture(image), replace(settings, jitter=None), sample_seed=seed, image_size=24
        )
        found = train_transform(picture(image), settings, sample_seed=seed, image_size=24)
        steps = dict(jitter.draw(np.array([seed])).reshape(-1, 2).tolist())
        orders.add(tuple(steps))
        drawn = torch.tensor(list(steps)).int(), *(steps.get(float(change)) for change in range(4))
        monkeypatch.setattr(ColorJitter, "get_params", lambda *_, drawn=drawn: drawn)
        expected = ColorJitter(0.4, 0.4, 0.4, hue)(Image.fromarray(plain.transpose(1, 2, 0)))
        assert np.array_equal(found.transpose(1, 2, 0), np.asarray(expected))
        assert not np.array_equal(found, plain)
    assert len(orders) > 3


def test_host_jitter_follows_randaug_and_leaves_the_generators_alone() -> None:
    settings = AugmentSettings(randaug=RANDAUG, jitter=Jitter(brightness=0.4, hue=0.1))
    image = picture(photo(60, 50))
    random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), torch.get_rng_state()
    for seed in range(6):
        first = train_transform(image, replace(settings, jitter=None), sample_seed=seed, image_size=24)
        found = train_transform(image, settings, sample_seed=seed, image_size=24)
        assert settings.jitter is not None
        by_hand = settings.jitter.on_picture(Image.fromarray(first.transpose(1, 2, 0)), sample_seed=seed)
        assert np.array_equal(found.transpose(1, 2, 0), np.asarray(by_hand))
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("wrong", [{"mode": "border"}, {"crop_pct": 1.2}, {"interpolation": "cubic"}])
def test_eval_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        EvalTransform(**wrong)


@pytest.mark.parametrize("mode", ["center", "squash", "none"])
def test_a_border_is_cut_off_first(mode: str) -> None:
    """As if the file had been saved without it."""
    rng = np.random.default_rng(3)
    inner = rng.integers(0, 256, (32, 32, 3) if mode == "none" else (50, 70, 3), dtype=np.uint8)
    framed = np.pad(inner, ((2, 2), (2, 2), (0, 0)), constant_values=255)
    plain, cut = EvalTransform(mode=mode), EvalTransform(mode=mode, border=2)  # type: ignore[arg-type]
    expected = plain.apply(picture(Image.fromarray(inner)), image_size=32)
    assert np.array_equal(cut.apply(picture(Image.fromarray(framed)), image_size=32), expected)
    with pytest.raises(ValueError, match="nothing is left inside a border of 40 px"):
        EvalTransform(mode=mode, border=40).apply(picture(Image.fromarray(framed)), image_size=32)
