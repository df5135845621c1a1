"""Random kinds by their statistics: distributions that the original's definitions give, within what chance allows."""

import math

import numpy as np
import pytest
import torch

import robust
from robust.corruptions import frost, noise, perlin, spatter, spectrum, waves
from robust.corruptions.draws import halves, normal, uniform
from robust.corruptions.tables import C_BAR

SEVERITIES = (1, 2, 3, 4, 5)
SEED = torch.tensor([1, 2, 3, 4])


def grey(level: int, side: int = 128) -> torch.Tensor:
    return torch.full((len(SEED), 3, side, side), float(level))


def test_normal_numbers() -> None:
    draw = normal(torch.tensor([5]), 400_000)[0].double()
    assert abs(float(draw.mean())) < 0.006
    assert abs(float(draw.var()) - 1) < 0.01
    assert abs(float((draw**4).mean()) - 3) < 0.05
    for limit in (0.5, 1.0, 2.0, 3.0):
        share = float((draw.abs() < limit).double().mean())
        assert abs(share - math.erf(limit / math.sqrt(2))) < 0.003
    values, counts = halves(torch.tensor([5]), 1 << 18).unique(return_counts=True)
    assert int(values.min()) >= 0
    assert int(values.max()) <= 65535
    assert int(counts.max()) < 20


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_and_speckle_noise_have_the_tables_deviation(severity: int) -> None:
    image = grey(100)
    for kind, spread in (
        (noise.gaussian_noise, 255 * (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]),
        (noise.speckle_noise, 100 * (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]),
    ):
        change = kind(image, SEED, severity) - image
        assert abs(float(change.mean())) < 4 * spread / math.sqrt(change.numel())
        assert abs(float(change.std()) / spread - 1) < 0.01
        channels = torch.corrcoef(change.transpose(0, 1).flatten(1))
        assert float((channels - torch.eye(3)).abs().max()) < 0.02, "channels have draws of their own"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_the_tables_share(severity: int) -> None:
    found = robust.corrupt(grey(100) / 255, "impulse_noise", severity, seed=SEED) * 255
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    for value in (0, 255):
        assert abs(float((found.round() == value).float().mean()) - amount / 2) < 0.003
    assert abs(float((found.round() == 100).float().mean()) - 1 + amount) < 0.004


@pytest.mark.parametrize("photons", [60, 25, 12, 5, 3])
def test_the_alias_table_is_poissons_law(photons: int) -> None:
    table = noise._poisson_table(photons).double().reshape(256, 128)
    other, own = table % 128, (table / 128).floor() / 2**24
    for level in (0, 1, 100, 255):
        share = own[level] / 128
        share = share.index_add(0, other[level].long(), (1 - own[level]) / 128).numpy()
        mean = level * photons / 255
        law = [
            math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1)) if mean else 0.0
            for count in range(128)
        ]
        law[0] = math.exp(-mean)
        np.testing.assert_allclose(share, law, atol=2e-7)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_counts_photons(severity: int) -> None:
    photons = (60, 25, 12, 5, 3)[severity - 1]
    counts = noise.shot_noise(grey(100), SEED, severity) * photons / 255
    assert float((counts - counts.round()).abs().max()) < 1e-4
    mean, num = 100 / 255 * photons, counts.numel()
    found = torch.bincount(counts.round().long().flatten(), minlength=64)
    for count in range(64):
        share = math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1))
        assert abs(float(found[count]) - num * share) < 5 * math.sqrt(num * share) + 3, count


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_moves_pixels_but_not_their_mean(severity: int) -> None:
    step = torch.arange(128) >= 64
    image = step.float().expand(4, 3, 128, 128)
    found = robust.corrupt(image, "glass_blur", severity, seed=SEED)
    assert abs(float(found.mean()) - 0.5) < 0.03
    across = found[:, 0, 32:96].std(dim=1).mean(dim=0)
    reach = (1, 2, 2, 3, 4)[severity - 1]
    assert float(across[63:66].min()) > 0.03, "the edge is ragged"
    assert float(across[: 64 - 9 * reach].max()) == 0.0
    assert float(across[64 + 12 * reach :].max()) == 0.0


def test_frost_is_as_bright_as_the_photographs() -> None:
    pictures = frost._generated()
    levels = frost.unpack(pictures)
    assert levels.shape == (5, 3, 512 * 512)
    for picture, (mean, spread, _) in zip(levels, frost._LOOKS, strict=True):
        np.testing.assert_allclose(picture.mean(1).numpy(), mean, atol=3)
        np.testing.assert_allclose(picture.std(1).numpy(), spread, rtol=0.1)


def test_snow_falls_and_whitens() -> None:
    black = torch.zeros(4, 3, 96, 96)
    share = []
    for severity in SEVERITIES:
        found = robust.corrupt(black, "snow", severity, seed=SEED)
        assert torch.equal(found[:, 0], found[:, 1]), "snow is white"
        share.append(float(found.mean()))
    floor = [0.5 * (1 - kept) for kept in (0.8, 0.7, 0.7, 0.65, 0.55)]  # of the whitening alone
    assert all(level > low + 0.02 for level, low in zip(share, floor, strict=True))


def test_distances_and_ranks_of_spatter() -> None:
    edge = torch.zeros(1, 40, 50, dtype=torch.bool)
    edge[0, 10, 10] = edge[0, 30, 41] = True
    y, x = np.mgrid[:40, :50]
    exact = np.minimum(np.hypot(y - 10, x - 10), np.hypot(y - 30, x - 41))
    near = exact <= 20
    np.testing.assert_allclose(spatter._distance(edge)[0].numpy()[near], exact[near], rtol=1e-6)
    layer = torch.tensor([[[0.0, 0, 3], [3, 3, 20]]])
    # OpenCV: 0 for the lowest level, and 255 / (6 - 2) for each pixel up to a level.
    assert spatter._equalised(layer)[0].tolist() == [[0, 0, 191], [191, 191, 255]]


def test_edges_of_spatter_are_one_pixel_wide() -> None:
    disk = torch.tensor(np.hypot(*(np.mgrid[:40, :40] - 20)) < 9).float()[None] * 200
    edge = spatter._edges(disk)[0]
    y, x = np.nonzero(edge.numpy())
    radius = np.hypot(y - 20, x - 20)
    assert 40 < len(y) < 80
    assert radius.min() > 7
    assert radius.max() < 10.5


def test_mud_is_brown_and_water_is_not() -> None:
    white, black = torch.ones(4, 3, 96, 96), torch.zeros(4, 3, 96, 96)
    mud = robust.corrupt(white, "spatter", 5, seed=SEED)
    full = mud.amin(dim=(2, 3))
    over = full * 255 - torch.tensor([63.0, 42.0, 20.0])
    assert float(over.min()) > -0.01
    assert float(over.max()) < 3, "in the middle of a blot"
    water = robust.corrupt(black, "spatter", 3, seed=SEED)
    peak = water.amax(dim=(2, 3)) * 255
    assert torch.equal(peak, torch.tensor([0.5 * 175, 0.5 * 238, 0.5 * 238]).floor().expand(4, 3))


# ImageNet-C-bar


def test_fields_of_a_spectrum_are_numpys_inverse_transform() -> None:
    levels = grey(100, 48)
    power = spectrum._radius(levels)
    field = spectrum._field(levels, SEED[:1], power)[0].double().numpy()
    half = uniform(SEED[:1], 48 * 24).double().numpy().reshape(48, 24)
    phase = 2 * np.pi * np.concatenate([half, half[::-1, ::-1]], axis=1)
    centre = np.hypot(*(np.mgrid[:48, :48] - 24))
    wave = np.roll(centre * np.exp(1j * phase), (24, 24), axis=(0, 1))
    exact = np.fft.ifft2(wave).real
    np.testing.assert_allclose(field, exact / exact.std(), atol=1e-4)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blue_noise_hides_and_brownish_noise_shifts(severity: int) -> None:
    image = grey(100)
    hidden = (spectrum.blue_noise_sample(image, SEED, severity) == 0).float().mean()
    threshold = 0.3 * C_BAR["blue_noise_sample"][severity - 1] - 2.5
    assert abs(float(hidden) - 0.5 * (1 + math.erf(threshold / math.sqrt(2)))) < 0.01
    change = spectrum.brownish_noise(image, SEED, severity) - image
    spread = change.std(dim=(2, 3)) / (6.4 * C_BAR["brownish_noise"][severity - 1])
    assert float((spread - 1).abs().max()) < 0.001
    assert float(change[:, :, 1:].sub(change[:, :, :-1]).abs().mean()) < 0.2 * float(change.abs().mean()), (
        "coarse"
    )


def test_perlin_noise_is_nothing_at_lattice_points() -> None:
    image, severity = grey(100, 224), 2
    found = perlin.perlin_noise(image, SEED, severity)
    share = 0.05 * C_BAR["perlin_noise"][severity - 1]
    expected = (1 - share) * 100 + 255 * share * 0.5
    assert float((found[:, :, ::32, ::32] - expected).abs().max()) < 0.01
    assert float((found - expected).min()) > -0.01
    assert float((found - expected).max()) > 10


def test_waves_have_their_amplitudes() -> None:
    image = grey(128)
    for severity in SEVERITIES:
        single = waves.single_frequency_greyscale(image, SEED, severity) - 128
        height = 19.6 * C_BAR["single_frequency_greyscale"][severity - 1]
        assert 0.9 * height < float(single.abs().max()) <= height * 1.0001
        rings = waves.cocentric_sine_waves(image, SEED, severity) - 128
        assert float(rings.abs().max()) <= 6.4 * C_BAR["cocentric_sine_waves"][severity - 1] * 1.0001
        plasma = waves.plasma_noise(image, SEED, severity)
        strength = 6.4 * C_BAR["plasma_noise"][severity - 1]
        assert float((plasma - (1 - strength / 255) * 128).abs().max()) <= strength * 1.0001
    spectrum_of = torch.fft.rfft2(single[0, 0]).abs().flatten().topk(8).values
    assert float(spectrum_of[0]) > 0.2 * float(torch.fft.rfft2(single[0, 0]).abs().sum() / 8), "one frequency"


def test_checkerboard_cuts_its_share_of_half_the_squares() -> None:
    seed = torch.arange(100)
    image = torch.zeros(100, 3, 64, 64)
    for severity in (1, 5):
        cut = robust.corrupt(image, "checkerboard_cutout", severity, seed=seed) * 255
        assert set(cut.round().unique().tolist()) == {0.0, 128.0}
        share = float((cut > 0).float().mean())
        assert abs(share - 0.05 * C_BAR["checkerboard_cutout"][severity - 1]) < 0.03


def test_sparkles_brighten_and_inverse_sparkles_spare_the_middle() -> None:
    image = grey(60) / 255
    assert bool((robust.corrupt(image, "sparkles", 3, seed=SEED) >= image - 1e-6).all())
    inverse = robust.corrupt(image, "inverse_sparkles", 5, seed=SEED) * 255
    assert float(inverse.mean()) > 120
    assert float(inverse.min()) < 70


def test_caustics_leave_a_flat_image_between_bands_of_light() -> None:
    found = robust.corrupt(torch.full((4, 3, 96, 96), 0.5), "caustic_refraction", 3, seed=SEED)
    assert torch.equal(found[:, 0], found[:, 1])
    assert abs(float(found[:, 0, 8:-8, 8:-8].median()) - 127 / 255) < 0.02
    assert float(found.std()) > 0.01
