"""`robust.corrupt` as a whole: what comes out, that it follows from image and seed alone, and what it refuses."""

import subprocess
import sys

import pytest
import torch

import robust
from robust.corruptions.names import COMMON, EXTRA, GROUPS

ALL = GROUPS["all"]


def pictures(num: int, height: int, width: int) -> torch.Tensor:
    """(N,3,H,W): smooth colours and a little noise, all values in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width).expand(height, width)
    plain = torch.stack([y, x, 0.5 + 0.4 * torch.sin(9 * y + 5 * x)])
    generator = torch.Generator().manual_seed(0)
    return (plain + 0.1 * torch.rand(num, 3, height, width, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("kind", ALL)
def test_results_are_8_bit_images_of_the_same_shape(kind: str) -> None:
    image, seed = pictures(2, 40, 56), torch.tensor([1, -(2**60)])
    for severity in (1, 5):
        found = robust.corrupt(image, kind, severity, seed=seed)
        assert found.shape == image.shape
        assert found.dtype == torch.float32
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1
        levels = found * 255
        assert float((levels - levels.round()).abs().max()) < 1e-4
        assert float((found - image).abs().mean()) > 1e-3, "nothing happened"


@pytest.mark.parametrize("kind", ALL)
def test_an_image_needs_no_other_image(kind: str) -> None:
    image, seed = pictures(3, 32, 32), torch.tensor([5, 6, 7])
    together = robust.corrupt(image, kind, 3, seed=seed)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(robust.corrupt(image[order], kind, 3, seed=seed[order]), together[order])
    assert torch.equal(robust.corrupt(image[1:2], kind, 3, seed=seed[1:2]), together[1:2])
    assert torch.equal(robust.corrupt(image, kind, 3, seed=seed), together)


FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
FIXED |= {"gaussian_blur", "saturate"}


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_decides_where_there_is_chance(kind: str) -> None:
    image = pictures(1, 64, 64).expand(2, -1, -1, -1)
    first, second = robust.corrupt(image, kind, 5, seed=torch.tensor([1, 2]))
    assert torch.equal(first, second) == (kind in FIXED)


def test_streams_of_kinds_and_severities_differ() -> None:
    image, seed = torch.full((1, 3, 64, 64), 0.5), torch.tensor([9])
    noise = [robust.corrupt(image, "gaussian_noise", severity, seed=seed) - 128 / 255 for severity in (1, 2)]
    noise.append(robust.corrupt(image, "speckle_noise", 5, seed=seed) - 128 / 255)
    table = torch.corrcoef(torch.stack([part.flatten() for part in noise]))
    assert float((table - torch.eye(3)).abs().max()) < 0.05


@pytest.mark.parametrize("kind", [*COMMON, *EXTRA])
def test_higher_severities_are_further_from_the_image(kind: str) -> None:
    if kind in ("elastic_transform", "glass_blur", "motion_blur", "snow", "frost", "saturate", "fog"):
        pytest.skip("not so, or hardly so, in the original either")
    image, seed = pictures(3, 96, 96), torch.arange(3)
    error = [
        float((robust.corrupt(image, kind, severity, seed=seed) - image).square().mean())
        for severity in range(1, 6)
    ]
    assert error == sorted(error)


def test_frost_of_ones_own() -> None:
    image, seed = pictures(4, 32, 40), torch.arange(4)
    white = robust.corrupt(image, "frost", 2, seed=seed, frost=torch.ones(3, 3, 48, 48))
    assert torch.equal(white, (0.8 * (image * 255).round() + 0.6 * 255).clamp(max=255).floor() / 255)
    ramp = (torch.arange(64.0) / 255).expand(1, 3, 64, 64)
    found = robust.corrupt(torch.zeros_like(image), "frost", 1, seed=seed, frost=ramp) * 255
    columns = torch.arange(40)
    starts = {
        start for start in range(25) if bool(((0.4 * (start + columns)).floor() == found[0, 0, 0]).all())
    }
    assert starts, "a part of the photograph, 0.4 of its light"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "gaussian_nose"}, "'gaussian_nose' does not exist; the nearest is gaussian_noise"),
        ({"severity": 6}, "severity 6 must be a whole number from 1 to 5"),
        ({"severity": 0}, "severity 0 .* 0 would be the clean image"),
        ({"severity": 2.0}, "severity 2.0 must be"),
        ({"severity": True}, "severity True must be"),
        ({"image": torch.full((2, 3, 32, 32), 255.0)}, "from 255 to 255, outside .0, 1.; divide"),
        ({"image": torch.full((2, 3, 32, 32), float("nan"))}, "from nan to nan"),
        ({"image": torch.zeros(3, 32, 32)}, r"image \(3, 32, 32\) of torch.float32 must be \(N,3,H,W\)"),
        ({"image": torch.zeros(2, 1, 32, 32)}, "must be .N,3,H,W. floats"),
        ({"image": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "of torch.uint8 must be"),
        ({"image": torch.zeros(2, 3, 32, 16)}, "32x16 px: corruptions need 32x32 at least"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"seed \(3,\) .* one number per image; there are 2"),
        ({"seed": torch.zeros(2)}, "of torch.float32 must be int64"),
        ({"frost": torch.ones(1, 3, 64, 64)}, "for the kind frost; drop them for fog"),
        (
            {"kind": "frost", "frost": torch.ones(1, 3, 16, 64)},
            "frost of 16x64 px is smaller than the images",
        ),
        ({"kind": "frost", "frost": torch.ones(3, 64, 64)}, r"frost \(3, 64, 64\) .* must be \(K,3,h,w\)"),
    ],
)
def test_one_line_for_what_cannot_be(change: dict[str, object], says: str) -> None:
    given: dict[str, object] = {
        "image": torch.zeros(2, 3, 32, 32),
        "kind": "fog",
        "severity": 1,
        "seed": torch.zeros(2, dtype=torch.int64),
    } | change
    image, kind, severity = given.pop("image"), given.pop("kind"), given.pop("severity")
    with pytest.raises(ValueError, match=says) as caught:
        robust.corrupt(image, kind, severity, **given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_images_are_no_mistake() -> None:
    nothing = torch.zeros(0, 3, 32, 32)
    assert robust.corrupt(nothing, "fog", 1, seed=torch.zeros(0, dtype=torch.int64)).shape == nothing.shape


def test_half_precision_comes_back_in_full() -> None:
    image = pictures(1, 32, 32)
    found = robust.corrupt(image.to(torch.bfloat16), "contrast", 1, seed=torch.tensor([0]))
    assert found.dtype == torch.float32


def test_groups() -> None:
    assert len(robust.list_corruptions("common")) == 15
    assert len(robust.list_corruptions("extra")) == 4
    assert len(robust.list_corruptions("c-bar")) == 10
    assert robust.list_corruptions() == (*COMMON, *EXTRA, *robust.list_corruptions("c-bar"))
    with pytest.raises(ValueError, match="group 'blurs' is none of noise, blur"):
        robust.list_corruptions("blurs")


def test_names_need_no_torch() -> None:
    code = "import sys, robust; robust.list_corruptions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
