"""RandAugment on the device against timm's in Pillow: every operation at every level, then whole pictures."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from timm.data import auto_augment

from data.augment import device_augment, with_augment
from data.batch import NUM_DRAWS
from data.decode import Picture
from data.device_randaug import DeviceRandAugment
from data.lut import corrected, divide, histogram
from data.op_draws import MATRIX, NUM_OP_DRAWS, OP, Op, _recorder, count_layers, draw_ops, ops_of
from data.order import sample_seed
from data.transform import AugmentSettings, Interpolation, build_randaug, seeded_random, train_transform

SIZE = 64
SETS = {"increasing": "-inc1", "plain": "", "weights": "-inc1-tweights", "3a": "-t3a", "3aw": "-t3aw"}
LEVELS = range(11)
DRAWS_OF_LEVEL = 2  # signs differ between draws
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def pictures() -> list[Image.Image]:
    """Photographs, digits, and what is hard on a histogram: one colour, two levels, a picture that is nearly white."""
    photos = [
        Image.fromarray(load_sample_image(name)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for name in ("china.jpg", "flower.jpg")
    ]
    scans = [Image.fromarray((scan * (255 / 16)).astype(np.uint8)) for scan in load_digits().images[:2]]
    digits = [scan.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB") for scan in scans]
    flat = Image.new("RGB", (SIZE, SIZE), (90, 200, 3))
    halves = Image.new("RGB", (SIZE, SIZE), (250, 250, 250))
    halves.paste((30, 60, 90), (0, 0, SIZE // 2, SIZE))
    pale = Image.fromarray(np.clip(np.asarray(photos[0]).astype(int) + 180, 0, 255).astype(np.uint8))
    return [*photos, *digits, flat, halves, pale]


def encoded(image: Image.Image) -> Picture:
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue())


def to_levels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in images]).float()


def on_device(settings: AugmentSettings) -> DeviceRandAugment:
    augment = device_augment(settings, erase_after_mix=False, mean=(0, 0, 0), std=(1, 1, 1), noise=None)
    assert augment.randaug is not None
    return augment.randaug


def both(name: str, text: str, level: int, filter_: Interpolation) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures under one operation at one level, by Pillow and by the device, with the same draws."""
    settings = AugmentSettings(
        randaug=text, magnitude=float(level), interpolation=filter_, randaug_on="device"
    )
    place = [op.name for op in build_randaug(settings).ops].index(name)
    host, recorder = build_randaug(settings).ops[place], _recorder(settings, SIZE).ops[place]
    images, rows, wanted = pictures(), [], []
    for number in range(DRAWS_OF_LEVEL):
        for image in images:
            with seeded_random(100 * level + number):
                wanted.append(host(image))
            with seeded_random(100 * level + number):
                rows.append(recorder([])[0])
    found = on_device(settings)(to_levels(images * DRAWS_OF_LEVEL), torch.tensor(rows))
    return to_levels(wanted), found


OPERATIONS = sorted(
    {
        (op.name, f"rand-m9-p1-n1{text}")
        for text in ("-inc1", "", "-t3a")
        for op in build_randaug(AugmentSettings(randaug=f"rand-m9{text}")).ops
    }
)


@pytest.mark.parametrize(("name", "text"), [pair for pair in OPERATIONS if pair[0] not in WARPS])
def test_levels_equal_pillows(name: str, text: str) -> None:
    """Bit for bit; autocontrast may be one level higher, where Pillow's float64 falls short of a whole number.

    And no picture is black, as timm's posterize makes it at level 10.
    """
    slack = 1 if name == "AutoContrast" else 0
    for level in LEVELS:
        wanted, found = both(name, text, level, "bicubic")
        assert (found - wanted).min() >= 0, level
        assert (found - wanted).max() <= slack, level
        assert (found != wanted).float().mean() < 0.01
        assert found.flatten(1).amax(1).min() > 0, level


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", WARPS)
def test_warps_agree_with_pillows(name: str, filter_: Interpolation) -> None:
    for level in LEVELS:
        wanted, found = both(name, "rand-m9-p1-n1-inc1", level, filter_)
        difference = (found - wanted).abs()
        assert difference.mean() < (0.03 if filter_ == "bilinear" else 0.005), level  # levels of 255
        assert (difference > 1).float().mean() < 1e-4, level
        assert found.flatten(1).amax(1).min() > 0, level
        assert level == 0 or (found != to_levels(pictures() * DRAWS_OF_LEVEL)).any()


@pytest.mark.parametrize("text", SETS.values(), ids=SETS)
def test_whole_pictures_are_the_loaders(text: str) -> None:
    """The same seeds get the same operations at the same strengths; only roundings of warps may differ, which a later
    layer can widen.
    """
    fields = {"randaug": f"rand-m9-mstd0.5{text}", "fill": (10, 200, 90)}
    host = AugmentSettings(**fields, randaug_on="host")
    device = AugmentSettings(**fields, randaug_on="device")
    seeds = sample_seed(np.arange(140), seed=3, epoch=2)
    images = pictures() * 20

    def load(settings: AugmentSettings) -> torch.Tensor:
        arrays = [
            train_transform(encoded(image), settings, sample_seed=int(seed), image_size=SIZE)
            for image, seed in zip(images, seeds, strict=True)
        ]
        return torch.from_numpy(np.stack(arrays)).float()

    wanted = load(host)
    draw = torch.from_numpy(draw_ops(seeds, device, image_size=SIZE))
    found = on_device(device)(load(device), draw)
    assert (wanted != load(device)).flatten(1).any(1).float().mean() > 0.3, "many pictures are changed"
    assert (found == wanted).float().mean() > 0.97
    assert (found - wanted).abs().mean() < 0.1
    assert (found - wanted).abs().mean((1, 2, 3)).max() < 3


def test_a_sample_depends_on_its_own_draws_alone() -> None:
    settings = AugmentSettings(randaug="rand-m9-mstd0.5-inc1", randaug_on="device")
    levels = to_levels(pictures())
    draw = torch.from_numpy(draw_ops(sample_seed(np.arange(7), seed=0, epoch=0), settings, image_size=SIZE))
    run = on_device(settings)
    whole = run(levels, draw)
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    assert torch.equal(run(levels[order], draw[order]), whole[order])
    for place in range(7):
        assert torch.equal(run(levels[place : place + 1], draw[place : place + 1])[0], whole[place])


def test_draws_follow_the_set_and_the_magnitude() -> None:
    settings = AugmentSettings(randaug="rand-m9-mstd0.5-inc1", randaug_on="device")
    seeds = sample_seed(np.arange(6000), seed=0, epoch=0)
    rows = draw_ops(seeds, settings, image_size=SIZE).reshape(6000, 2, NUM_OP_DRAWS)
    share = {Op(int(op)): n / 12000 for op, n in Counter(rows[:, :, OP].ravel().tolist()).items()}
    assert share.pop(Op.NOTHING) == pytest.approx(0.5, abs=0.02)
    assert share.pop(Op.WARP) == pytest.approx(0.5 * 5 / 15, abs=0.02)
    assert share.pop(Op.SOLARIZE) == pytest.approx(0.5 * 2 / 15, abs=0.01), "solarize and invert"
    assert set(share) == ops_of(settings) - {Op.WARP, Op.SOLARIZE}
    assert all(value == pytest.approx(0.5 / 15, abs=0.01) for value in share.values())
    weak = AugmentSettings(randaug="rand-m9-mstd0.5-inc1", randaug_on="device", magnitude=1.0)
    gentle = draw_ops(seeds, weak, image_size=SIZE).reshape(6000, 2, NUM_OP_DRAWS)
    assert np.array_equal(gentle[:, :, OP], rows[:, :, OP]), "the magnitude changes no choice"
    assert np.abs(gentle[:, :, MATRIX + 2]).mean() < 0.3 * np.abs(rows[:, :, MATRIX + 2]).mean()


def test_drawing_leaves_pythons_generator_alone() -> None:
    settings = AugmentSettings(randaug="rand-m9-mstd0.5-inc1", randaug_on="device")
    state = random.getstate()
    first = draw_ops(np.array([5, 6]), settings, image_size=SIZE)
    assert random.getstate() == state
    random.seed(1)
    assert np.array_equal(draw_ops(np.array([6, 5]), settings, image_size=SIZE)[::-1], first)


def test_every_set_of_timm_has_device_versions() -> None:
    for text in SETS.values():
        assert ops_of(AugmentSettings(randaug=f"rand-m9{text}"))
    assert count_layers(AugmentSettings(randaug="rand-m9-n3-inc1")) == 3


def test_an_operation_without_device_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_augment, "_RAND_INCREASING_TRANSFORMS", ["Invert", "TranslateX"])
    settings = AugmentSettings(randaug="rand-m3-inc1", randaug_on="device")
    build_randaug.cache_clear()
    with pytest.raises(ValueError, match=r"TranslateX has no device version; use data\.randaug_on=host"):
        on_device(settings)
    build_randaug.cache_clear()


def test_a_filter_that_the_device_lacks_is_refused() -> None:
    settings = AugmentSettings(randaug="rand-m3-inc1", randaug_on="device", interpolation="lanczos")
    with pytest.raises(ValueError, match="knows bilinear and bicubic, not lanczos"):
        on_device(settings)


def test_host_settings_draw_no_columns() -> None:
    draws = np.zeros((4, NUM_DRAWS), np.float32)
    host = AugmentSettings(randaug="rand-m9-mstd0.5-inc1")
    assert with_augment(draws, np.arange(4), host, image_size=SIZE) is draws


def test_it_is_one_graph_with_static_shapes() -> None:
    """Tracing fails on a host read or a shape that follows values."""
    settings = AugmentSettings(randaug="rand-m9-mstd0.5-t3aw", randaug_on="device")
    levels, run = to_levels(pictures()), on_device(settings)
    rows = [torch.from_numpy(draw_ops(np.arange(7) + shift, settings, image_size=SIZE)) for shift in (0, 7)]

    class Module(torch.nn.Module):
        def forward(self, levels: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
            return run(levels, draw)

    program = torch.export.export(Module(), (levels, rows[0])).module()
    for draw in rows:
        assert torch.equal(program(levels, draw), run(levels, draw))


def test_histogram_and_division_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (2, 3, 100, 101), generator=generator).float()
    counts = histogram(levels)
    for sample in range(2):
        for channel in range(3):
            wanted = torch.bincount(levels[sample, channel].long().flatten(), minlength=256)
            assert torch.equal(counts[sample, channel].long(), wanted)
    number = torch.randint(0, 1 << 24, (100_000,), generator=generator)
    divisor = torch.randint(1, 3000, (100_000,), generator=generator)
    number[:50_000] -= number[:50_000] % divisor[:50_000]  # whole quotients are where rounding can fail
    wanted = number // divisor
    assert torch.equal(divide(number.float(), divisor.float()).long(), wanted)
    for off in (-1, 0, 1):
        guess = (wanted + off).float()
        assert torch.equal(corrected(guess, number.float(), divisor.float()).long(), wanted)
