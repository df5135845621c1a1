"""Random erasing on the device against timm's, and its place in the order of operations."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from data.augment import NO_AUGMENT, DeviceAugment
from data.batch import LAM, NUM_DRAWS
from data.erase import DeviceErase, Erase, Mode
from data.mix import mix
from data.order import sample_seed
from robust.noise import noise

SIZE = 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SEEDS = sample_seed(np.arange(3000), seed=0, epoch=0)


def eraser(mode: Mode, *, count: int = 1, prob: float = 1.0) -> DeviceErase:
    return DeviceErase(settings=Erase(prob=prob, mode=mode, count=count), mean=MEAN, std=STD, noise=noise)


def erased(erase: DeviceErase, num: int, image: torch.Tensor | None = None) -> torch.Tensor:
    image = torch.full((num, 3, SIZE, SIZE), 2.0) if image is None else image  # no colour is 2
    draw = torch.from_numpy(erase.settings.draw(SEEDS[:num], image_size=SIZE))
    return erase(image, draw, torch.from_numpy(SEEDS[:num]))


@pytest.mark.parametrize("count", [1, 3])
def test_boxes_are_timms(count: int) -> None:
    """How many pixels are erased: mean, spread and the share of images with none."""
    random.seed(0)
    timm = RandomErasing(probability=0.6, mode="const", max_count=count, device="cpu")
    theirs = (timm(torch.full((3000, 3, SIZE, SIZE), 2.0))[:, 0] != 2).float().mean((1, 2))
    ours = (erased(eraser("const", count=count, prob=0.6), 3000)[:, 0] != 2).float().mean((1, 2))
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.008)
    assert ours.std().item() == pytest.approx(theirs.std().item(), abs=0.008)
    assert (ours == 0).float().mean().item() == pytest.approx((theirs == 0).float().mean().item(), abs=0.04)
    for rank in (0.5, 0.75, 0.95):
        assert ours.quantile(rank).item() == pytest.approx(theirs.quantile(rank).item(), abs=0.02)


def test_boxes_lie_everywhere_inside() -> None:
    box = Erase(prob=1.0).draw(SEEDS, image_size=SIZE)
    y0, y1, x0, x1 = box.T
    assert (y0 < y1).all()
    assert (x0 < x1).all()
    assert y0.min() == 0 == x0.min()
    assert y1.max() == SIZE == x1.max()
    aspect = (y1 - y0) / (x1 - x0)
    assert (aspect > 2).mean() == pytest.approx((aspect < 0.5).mean(), abs=0.03)


def test_const_is_the_mean_colour() -> None:
    image = erased(eraser("const"), 50)
    for channel, value in enumerate(MEAN):
        assert set(image[:, channel].unique().tolist()) == {np.float32(value), 2.0}


def test_rand_is_one_colour_for_each_box() -> None:
    image = erased(eraser("rand"), 400)
    colours = [sample[:, sample[0] != 2].unique(dim=1) for sample in image]
    assert all(colour.shape == (3, 1) for colour in colours)
    found = torch.cat(colours, dim=1)
    assert found.mean(1).tolist() == pytest.approx(MEAN, abs=0.05)


def test_pixel_is_normal_noise_clipped_to_the_image() -> None:
    image = erased(eraser("pixel"), 400)
    assert image[image != 2].min() == 0
    assert image[image != 2].max() <= 1
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        values = image[:, channel][image[:, channel] != 2]
        normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
        wanted = (mean + std * normal).clamp(0, 1)
        assert values.mean().item() == pytest.approx(wanted.mean().item(), abs=0.01)
        assert values.std().item() == pytest.approx(wanted.std().item(), abs=0.01)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_a_sample_depends_on_its_own_draws_alone(mode: Mode) -> None:
    erase = eraser(mode, count=2)
    draw, seed = torch.from_numpy(erase.settings.draw(SEEDS[:9], image_size=SIZE)), torch.tensor(SEEDS[:9])
    image = torch.rand(9, 3, SIZE, SIZE)
    whole = erase(image, draw, seed)
    assert torch.equal(erase(image[4:6], draw[4:6], seed[4:6]), whole[4:6])
    assert (whole != image).flatten(1).any(1).all()


def test_erasing_stands_before_or_after_mixing() -> None:
    """An erased box is half transparent when mixing comes after it, and opaque when it comes before."""
    draw = np.zeros((2, NUM_DRAWS), np.float32)
    draw[:, LAM] = 0.5
    erase = eraser("const")
    box = np.array([[0, 8, 0, 8], [0, 0, 0, 0]], np.float32)
    columns = torch.from_numpy(np.concatenate([draw, box], axis=1))
    image = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    red = {}
    for after in (False, True):
        augment = DeviceAugment(erase=erase, erase_after_mix=after)
        seed = torch.from_numpy(SEEDS[:2])
        entered = augment.before_mix(image, columns, seed)
        mixed, _ = mix(entered, torch.tensor([0, 1]), columns, num_classes=2, smoothing=0.0)
        red[after] = augment.after_mix(mixed, columns, seed)[:, 0, 0, 0].tolist()
    assert red == {False: [0.25, 0.25], True: [0.5, 0.0]}


def test_nothing_on_the_device_is_a_plain_division() -> None:
    image = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    draw, seed = torch.zeros(4, NUM_DRAWS), torch.zeros(4, dtype=torch.int64)
    entered = NO_AUGMENT.before_mix(image, draw, seed)
    assert torch.equal(entered, image.float() / 255.0)
    assert NO_AUGMENT.after_mix(entered, draw, seed) is entered


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prob": 1.5}, "prob 1.5 is not a probability"),
        ({"prob": 1.0, "mode": "blur"}, "mode 'blur' is unknown"),
        ({"prob": 1.0, "count": 0}, "count 0 must be at least 1"),
        ({"prob": 1.0, "area": (0.5, 0.2)}, "must be .low, high."),
        ({"prob": 1.0, "min_aspect": 0.0}, "min_aspect 0.0 must be"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Erase(**fields)
