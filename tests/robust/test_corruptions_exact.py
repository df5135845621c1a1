"""Kinds without chance, and those whose draws are known, against references in float64 that are written here from the
original's definitions with numpy, scipy, colorsys and Pillow. Tolerance: the last level."""

import colorsys
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from PIL import Image

import robust
from robust.corruptions import elastic, fog, glass, motion
from robust.corruptions.draws import halves, stream, uniform, whole
from robust.corruptions.pixels import bilinear, pack
from robust.noise import noise

Array = NDArray[np.float64]
SEVERITIES = (1, 2, 3, 4, 5)


def photo(height: int = 64, width: int = 72) -> NDArray[np.uint8]:
    """(H,W,3): smooth shapes, edges, noise, and patches of grey, black, white and pure colours."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width] / min(height, width)
    picture = np.stack([y, x, 0.5 + 0.5 * np.sin(12 * x * y)], axis=-1) * 255
    picture = picture + random.normal(0, 12, picture.shape)
    picture[8:24, 8:30] = [200, 30, 60]
    picture[30:36, 5:50] = 0
    picture[40:48, 20:60] = 128
    picture[50:56, 30:40] = 255
    return picture.clip(0, 255).astype(np.uint8)


def ours(picture: NDArray[np.uint8], kind: str, severity: int, seed: int = 0) -> Array:
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float() / 255
    found = robust.corrupt(image, kind, severity, seed=torch.tensor([seed]))
    return (found[0].double().numpy() * 255).round().transpose(1, 2, 0)


def assert_close(found: Array, expected: Array, *, share: float = 0.01) -> None:
    """Equal to the 8-bit result but for one level in a few places, where a value is whole but for rounding."""
    difference = np.abs(found - np.floor(expected.clip(0, 255) + 1e-6))
    assert difference.max() <= 1, difference.max()
    assert (difference > 0).mean() <= share


def by_colour(picture: NDArray[np.uint8], change: "object") -> Array:
    flat = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in picture.reshape(-1, 3) / 255
    ]  # type: ignore[operator]
    return 255 * np.array(flat).reshape(picture.shape)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_a_raised_value(severity: int) -> None:
    raised = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    picture = photo()
    assert_close(
        ours(picture, "brightness", severity), by_colour(picture, lambda h, s, v: (h, s, min(v + raised, 1)))
    )


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_is_a_changed_saturation(severity: int) -> None:
    factor, addend = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    picture = photo()
    expected = by_colour(picture, lambda h, s, v: (h, min(s * factor + addend, 1), v))
    assert_close(ours(picture, "saturate", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_nearer_to_the_channel_means(severity: int) -> None:
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    picture = photo()
    mean = picture.mean(axis=(0, 1))
    assert_close(ours(picture, "contrast", severity), (picture - mean) * share + mean)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box_twice(severity: int) -> None:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    picture = photo(224, 200)
    small = Image.fromarray(picture).resize((int(200 * share), int(224 * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((200, 224), Image.Resampling.BOX))
    assert np.array_equal(ours(picture, "pixelate", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_scipys(severity: int) -> None:
    sigma = (1, 2, 3, 4, 6)[severity - 1]
    picture = photo()
    expected = scipy.ndimage.gaussian_filter(
        picture.astype(float), (sigma, sigma, 0), mode="nearest", truncate=4
    )
    assert_close(ours(picture, "gaussian_blur", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_the_softened_disk_of_the_original(severity: int) -> None:
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach, soft = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    line = np.exp(-0.5 * (np.arange(-soft, soft + 1) / sigma) ** 2)
    disk = scipy.ndimage.correlate(disk / disk.sum(), np.outer(line, line) / line.sum() ** 2, mode="mirror")
    picture = photo().astype(float)
    expected = np.stack(
        [scipy.ndimage.correlate(picture[..., c], disk, mode="mirror") for c in range(3)], axis=-1
    )
    assert_close(ours(photo(), "defocus_blur", severity), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_blur_is_a_mean_of_scipys_zooms(severity: int) -> None:
    bounds = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, *bounds)
    picture = photo(64, 64).astype(float)
    total = picture.copy()
    for factor in factors:
        kept = math.ceil(64 / factor)
        top = (64 - kept) // 2
        large = scipy.ndimage.zoom(picture[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
        trim = (large.shape[0] - 64) // 2
        total += large[trim : trim + 64, trim : trim + 64]
    assert_close(ours(photo(64, 64), "zoom_blur", severity), total / (len(factors) + 1))


@pytest.mark.parametrize(("reach", "doublings"), [(1, 0), (2, 4), (3, 5), (4, 5)])
def test_pointers_of_glass_blur_are_the_walk_of_the_original(reach: int, doublings: int) -> None:
    height, width = 40, 36
    drawn = glass.neighbours(torch.tensor([8]), reach, height=height, width=width)
    walked = np.arange(height * width)
    for y in range(height - reach, reach, -1):
        for x in range(width - reach, reach, -1):
            place = y * width + x
            step = int(drawn[0, place]) - place
            down = round(step / width)
            assert -reach <= down < reach
            assert -reach <= step - down * width < reach
            walked[place] = walked[drawn[0, place]]  # what the original's exchange of views does
    assert np.array_equal(glass.sources(drawn, doublings=doublings)[0].numpy(), walked)
    steps = drawn[0] - torch.arange(height * width)
    assert int((steps == 0).sum()) > 0
    assert len(set(steps.tolist())) == (2 * reach) ** 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_is_a_sum_of_shifts(severity: int) -> None:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    picture, seed = photo(), 21
    angle = whole(stream(torch.tensor([seed]), "motion_blur", severity), 1, 4096)
    degrees = -45 + 90 * (int(angle) + 0.5) / 4096
    y, x = np.mgrid[:64, :72]
    total, weights = np.zeros(picture.shape), 0.0
    for step in range(2 * radius + 1):
        down = math.ceil(step * math.sin(math.radians(degrees)) - 0.5)
        right = math.ceil(step * math.cos(math.radians(degrees)) - 0.5)
        weight = math.exp(-(step**2) / (2 * sigma**2))
        total += weight * picture[(y + down).clip(0, 63), (x + right).clip(0, 71)]
        weights += weight
    assert_close(ours(picture, "motion_blur", severity, seed), total / weights)


def test_streaks_by_gathers_are_those_by_slices() -> None:
    image, steps = torch.rand(2, 3, 40, 48) * 255, motion._steps(10, -135)[torch.tensor([17, 4000])]
    weights = [0.5, 0.25, *[0.25 / 19] * 19]
    slices = motion._by_slices(image, steps, weights, reach=20)
    assert torch.equal(motion._by_gathers(image, steps, weights, reach=20), slices)
    assert float(slices.std()) > 1


def test_plasma_is_the_diamond_square_algorithm() -> None:
    seed, side, decay = torch.tensor([4]), 32, 1.7
    draws = 2 * noise(seed, (side * side,))[0].double().numpy() - 1
    grid, step, amplitude, used = np.zeros((side, side)), side, 100.0, 0

    def wibbled(total: Array) -> Array:
        nonlocal used
        used += total.size
        return total / 4 + amplitude**2 * draws[used - total.size : used].reshape(total.shape)

    while step >= 2:
        half = step // 2
        corners = grid[::step, ::step]
        pair = corners + np.roll(corners, -1, axis=0)
        grid[half::step, half::step] = wibbled(pair + np.roll(pair, -1, axis=1))
        middle = grid[half::step, half::step]
        across = middle + np.roll(middle, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        grid[::step, half::step] = wibbled(across)
        below = middle + np.roll(middle, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        grid[half::step, ::step] = wibbled(below)
        step, amplitude = half, amplitude / decay
    expected = (grid - grid.min()) / (grid.max() - grid.min())
    np.testing.assert_allclose(fog.plasma(seed, side, decay)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_plasma_and_less_contrast(severity: int) -> None:
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    picture = photo() // 2
    cloud = (
        fog.plasma(stream(torch.tensor([6]), "fog", severity), 128, decay)[0, :64, :72, None].double().numpy()
    )
    brightest = picture.max() / 255
    expected = (picture / 255 + thickness * cloud) * brightest / (brightest + thickness)
    assert_close(ours(picture, "fog", severity, 6), 255 * expected)


def test_bilinear_is_scipys() -> None:
    picture = photo().astype(float)
    random = np.random.default_rng(0)
    y, x = random.uniform(-30, 94, 500), random.uniform(-30, 102, 500)
    packed = pack(torch.from_numpy(picture.transpose(2, 0, 1)).float()[None])
    place = [torch.from_numpy(value).float()[None] for value in (y, x)]
    for border, mode in (("mirror", "mirror"), ("reflect", "reflect"), ("zero", "grid-constant")):
        found = bilinear(packed, place[0], place[1], height=64, width=72, border=border)[0]  # type: ignore[arg-type]
        for channel in range(3):
            exact = scipy.ndimage.map_coordinates(picture[..., channel], (y, x), order=1, mode=mode)
            np.testing.assert_allclose(found[channel].numpy(), exact, atol=0.01)


def test_the_affine_part_takes_the_corners_where_they_were_drawn() -> None:
    height, width = 224, 200
    shift = torch.tensor([[3.0, -7.5, 12.0, 4.0, -9.0, 1.0]])
    corners = np.array([[112 + 66, 100 + 66], [112 - 66, 100 + 66], [112 - 66, 100 - 66]])
    moved = torch.from_numpy(corners + shift.numpy().reshape(3, 2)).float()
    y, x = elastic._affine(shift, moved[:, 0], moved[:, 1], height=height, width=width)
    np.testing.assert_allclose(torch.stack([y[0], x[0]], dim=-1).numpy(), corners, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.7, 2.44, 7.0, 45.0])
def test_displacements_are_scipys_blurred_noise(sigma: float) -> None:
    seed, height, width = torch.tensor([2]), 48, 64
    found = elastic._displacements(seed, sigma=sigma, height=height, width=width)
    draw = (halves(seed, 2 * height * width).double().numpy() + 0.5) / 32768 - 1
    for part, field in zip(found[:, 0], draw.reshape(2, height, width), strict=True):
        expected = scipy.ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        np.testing.assert_allclose(part.reshape(height, width).numpy(), expected, atol=2e-6)


def test_elastic_transform_is_the_affine_map_and_the_displacements() -> None:
    picture, severity, side = photo(64, 64), 5, 64 * 244 / 224
    seed = stream(torch.tensor([3]), "elastic_transform", severity)
    y, x = (axis.reshape(-1).float() for axis in torch.from_numpy(np.mgrid[:64, :64]))
    shift = uniform(stream(seed, "elastic_transform", severity, 1), 6, -0.02 * side, 0.02 * side)
    to_y, to_x = elastic._affine(shift, y, x, height=64, width=64)
    move = elastic._displacements(seed, sigma=0.01 * side, height=64, width=64)[:, 0].numpy() * 0.12 * side
    expected = np.empty(picture.shape)
    for channel in range(3):
        plane = picture[..., channel].astype(float)
        moved = scipy.ndimage.map_coordinates(
            plane, (to_y[0].numpy(), to_x[0].numpy()), order=1, mode="mirror"
        )
        place = (y.numpy() + move[0], x.numpy() + move[1])
        again = scipy.ndimage.map_coordinates(moved.reshape(64, 64), place, order=1, mode="reflect")
        expected[..., channel] = again.reshape(64, 64)
    assert np.abs(move).max() > 0.5
    assert_close(
        ours(picture, "elastic_transform", severity, 3), expected, share=0.2
    )  # quarters of a level between
