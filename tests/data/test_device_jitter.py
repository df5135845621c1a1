"""Colour jitter on the device against torchvision's on Pillow images."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import functional

from data.hue import shift_hue
from data.jitter import Change, Jitter
from data.order import sample_seed

STRONG = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
PILLOW = {
    Change.BRIGHTNESS: functional.adjust_brightness,
    Change.CONTRAST: functional.adjust_contrast,
    Change.SATURATION: functional.adjust_saturation,
    Change.HUE: functional.adjust_hue,
}
SEEDS = sample_seed(np.arange(24), seed=0, epoch=0)


def pictures(num: int) -> list[Image.Image]:
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((160, 96))
    return [photo.crop((x, x // 2, x + 48, x // 2 + 48)) for x in range(num)]


def to_levels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.tensor(np.asarray(image)).permute(2, 0, 1) for image in images]).float()


@pytest.mark.parametrize("hue", [0.0, 0.1])
def test_it_is_torchvisions_on_pillow_images(hue: float) -> None:
    """Same order and factors: the same pixels, but for a level here and there that the hue's divisions round."""
    jitter = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=hue)
    draw = jitter.draw(SEEDS)
    images = pictures(24)
    found = jitter(to_levels(images), torch.from_numpy(draw))
    for place, row in enumerate(draw.reshape(24, -1, 2)):
        for change, factor in row.tolist():
            images[place] = PILLOW[Change(int(change))](images[place], factor)
    difference = (found - to_levels(images)).abs()
    assert (difference > 0).float().mean() < (0.01 if hue else 1e-9)
    assert difference.max() <= (8 if hue else 0)
    assert (found != to_levels(pictures(24))).flatten(1).any(1).all()


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.004, 0.33, 0.5])
def test_hue_of_all_kinds_of_colours(turns: float) -> None:
    steps = np.array([0, 1, 2, 7, 31, 64, 100, 127, 128, 129, 200, 233, 254, 255], np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    image = Image.fromarray(colours)
    found = shift_hue(to_levels([image]), torch.full((1, 1, 1, 1), turns))
    difference = (found - to_levels([functional.adjust_hue(image, turns)])).abs()
    assert (difference > 0).float().mean() < 0.002
    assert difference.max() <= 6, "one 256th of a turn"


def test_draws_are_uniform_and_in_random_order() -> None:
    rows = STRONG.draw(sample_seed(np.arange(4000), seed=0, epoch=0)).reshape(4000, 4, 2)
    assert len({tuple(order) for order in rows[:, :, 0].tolist()}) == 24
    assert np.array_equal(np.sort(rows[:, :, 0]), np.tile([0, 1, 2, 3], (4000, 1)))
    for change in Change:
        factors = rows[:, :, 1][rows[:, :, 0] == change]
        low, high = (-0.1, 0.1) if change is Change.HUE else (0.6, 1.4)
        assert low <= factors.min() < low + 0.01
        assert high - 0.01 < factors.max() <= np.float32(high)
        assert factors.mean() == pytest.approx((low + high) / 2, abs=0.02)
        assert abs(np.corrcoef(factors, rows[:, 0, 0])[0, 1]) < 0.1, "amount and order are independent"


def test_a_factor_is_never_negative() -> None:
    rows = Jitter(brightness=3.0).draw(SEEDS).reshape(24, 3, 2)
    factors = rows[:, :, 1][rows[:, :, 0] == Change.BRIGHTNESS]
    assert factors.min() >= 0
    assert factors.max() > 2
    assert (rows[:, :, 1][rows[:, :, 0] != Change.BRIGHTNESS] == 1).all()


def test_a_sample_depends_on_its_own_draws_alone() -> None:
    levels, draw = to_levels(pictures(24)), torch.from_numpy(STRONG.draw(SEEDS))
    whole = STRONG(levels, draw)
    assert torch.equal(STRONG(levels[5:9], draw[5:9]), whole[5:9])


@pytest.mark.parametrize(
    ("fields", "complaint"), [({"contrast": -0.1}, "contrast -0.1 must be"), ({"hue": 0.6}, "hue 0.6 is in")]
)
def test_wrong_strengths_are_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Jitter(**fields)
