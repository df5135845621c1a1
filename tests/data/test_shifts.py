"""Shifted pictures: pure functions of picture and seed, each of the strength it states."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from data import shifts
from data.digits import _enlarge
from data.order import hash64
from data.shifts import (
    BLUR_SIGMA,
    CONTRAST,
    GROUND_LUMA,
    INK_LUMA,
    NOISE_SIGMA,
    SHIFTS,
    blur,
    contrast,
    noise,
    sketch,
    stylized,
)

Pictures = NDArray[np.uint8]
RANDOM = ("noise", "stylized")
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def scans() -> Pictures:
    """60 scans at 32 px, uint8 [60,32,32,3]."""
    return np.stack([np.asarray(_enlarge(image, 32)) for image in load_digits().images[:60]])


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_is_a_pure_function(name: str, scans: Pictures) -> None:
    """The same picture and seed give the same pixels, in any order, whatever the global generators do."""
    shift, before = SHIFTS[name], scans.copy()
    first = [shift(image, seed) for seed, image in enumerate(scans[:6])]
    np.random.default_rng(0).random(5)
    again = [shift(image, seed) for seed, image in reversed(list(enumerate(scans[:6])))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(image.dtype == np.uint8 and image.shape == (32, 32, 3) for image in first)
    assert np.array_equal(scans, before), "the picture itself must not change"


@pytest.mark.parametrize("name", SHIFTS)
def test_the_seed_matters_where_something_is_random(name: str, scans: Pictures) -> None:
    one, other = (SHIFTS[name](scans[0], int(hash64("seed", number))) for number in range(2))
    assert np.array_equal(one, other) == (name not in RANDOM)


def test_noise_has_its_sigma_and_is_independent() -> None:
    """On mid-grey, where cutting to [0, 1] takes least: 0.3 is 1.67 sigma away from the ends."""
    grey = np.full((64, 64, 3), 128, np.uint8)
    values = noise(grey, 5) / 255 - 128 / 255
    inside = values[np.abs(values) < 0.45]
    # Of a normal distribution cut at 1.5 sigma this much of the variance is left: 1 - 2 a phi(a) / (2 Phi(a) - 1).
    expected = NOISE_SIGMA * np.sqrt(1 - 2 * 1.5 * 0.12952 / 0.86639)
    assert abs(inside.std() - expected) < 0.02 * expected
    assert abs(values.mean()) < 0.01
    assert abs(np.mean(np.abs(values) > 0.4) - 0.1824) < 0.02, "2 Phi(-0.4 / 0.3)"
    assert abs(np.corrcoef(values[..., 0].ravel(), values[..., 1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1]) < 0.05


def test_blur_is_a_gaussian_of_its_sigma() -> None:
    """An edge blurred by a Gaussian is its distribution function: 15.87 % one sigma before the edge."""
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 255
    row = blur(edge, 0)[32, :, 0] / 255
    sigma = BLUR_SIGMA * 64 / 32
    assert abs(np.interp(31.5 - sigma, np.arange(64), row) - 0.1587) < 0.005


def test_blur_takes_the_high_frequencies(scans: Pictures) -> None:
    def high(images: Pictures) -> float:
        windowed = (
            images[..., 0] / 255.0 * np.outer(np.hanning(32), np.hanning(32))
        )  # a picture is not periodic
        power = np.abs(np.fft.fft2(windowed, axes=(1, 2))) ** 2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
        return float(power[:, frequency > 0.12].sum())

    assert high(np.stack([blur(image, 0) for image in scans])) < 0.03 * high(scans)


def test_contrast_keeps_the_mean_and_halves_the_deviation(scans: Pictures) -> None:
    for image in scans:
        less = contrast(image, 0)
        assert abs(float(less.mean()) - float(image.mean())) < 0.5
        assert abs(less.std() / image.std() - CONTRAST) < 0.01


def test_sketch_is_dark_lines_on_white_along_the_edges(scans: Pictures) -> None:
    for image in scans:
        lines = sketch(image, 0)[..., 0].astype(float)
        assert (lines > 200).mean() > 0.4, "mostly paper"
        assert 0.08 < (lines < 100).mean() < 0.5, "with lines on it"
        down, across = np.gradient(image[..., 0] / 255.0)
        assert np.corrcoef(lines.ravel(), np.hypot(down, across).ravel())[0, 1] < -0.7
    ground = (scans[..., 0] < 5) & (np.stack([blur(image, 0)[..., 0] for image in scans]) < 5)
    assert np.stack([sketch(image, 0)[..., 0] for image in scans])[ground].min() > 240


def test_stylized_keeps_the_shape_and_changes_colour_and_texture(scans: Pictures) -> None:
    pictures = [stylized(image, int(hash64("test", number))) for number, image in enumerate(scans)]
    tints, means = [], []
    for image, picture in zip(scans, pictures, strict=True):
        luma = picture @ LUMA / 255
        ink, ground = image[..., 0] > 220, image[..., 0] < 30
        assert luma[ink].mean() > luma[ground].mean() + 0.45, "the ink stays separable"
        assert np.mean(luma[ink] > 0.5) > 0.98
        assert np.mean(luma[ground] < 0.5) > 0.98
        assert luma[ground].std() > 0.02, "a texture and not one colour"
        tints.append(picture[ground].mean(0))
        means.append((luma[ink].mean(), luma[ground].mean()))
    assert np.std(tints, axis=0).min() > 8, "another colour for each picture"
    assert np.allclose(np.mean(means, axis=0), (INK_LUMA, GROUND_LUMA), atol=0.05)


def test_ink_and_ground_have_different_textures() -> None:
    """A picture of ink alone and one of ground alone, of the same seeds, do not vary together."""
    full, empty = (np.full((32, 32, 3), value, np.uint8) for value in (255, 0))
    alike = []
    for seed in range(40):
        ink, ground = (stylized(image, seed) @ LUMA for image in (full, empty))
        alike.append(np.corrcoef(ink.ravel(), ground.ravel())[0, 1])
    assert np.abs(alike).mean() < 0.15


def test_the_families_of_ink_and_ground_differ_and_all_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, float]]] = {"ink": [], "ground": []}
    real = shifts._waves

    def waves(image: Pictures, seed: int, part: str, num_waves: int, spread: float) -> NDArray[np.float64]:
        seen[part].append((num_waves, spread))
        return real(image, seed, part, num_waves, spread)

    monkeypatch.setattr(shifts, "_waves", waves)
    for seed in range(60):
        stylized(np.zeros((8, 8, 3), np.uint8), seed)
    assert all(ink != ground for ink, ground in zip(seen["ink"], seen["ground"], strict=True))
    assert set(seen["ink"]) == set(seen["ground"]) == set(shifts._FAMILIES)


@pytest.mark.parametrize("name", ["blur", "stylized", "sketch"])
def test_a_larger_picture_is_shifted_as_strongly(name: str) -> None:
    """Shown at twice the size, shifted and shrunk again, a scan looks as it does shifted at its own size."""
    for number, image in enumerate(load_digits().images[:8]):
        small, large = (SHIFTS[name](np.asarray(_enlarge(image, size)), number) for size in (32, 64))
        shrunk = large.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.93
