"""Linf and L2: projection, step and random start, as properties over random radii, and by numbers worked out by
hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust.noise import noise
from robust.threat import L2, THREATS, Linf, ThreatModel, normal, per_image

LINF = Linf()
ROUNDING = 2e-7  # of float32 bounds near 1
BOTH = pytest.mark.parametrize("threat", [LINF, L2()], ids=["linf", "l2"])


def images(seed: int, *, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, 4, 5, generator=generator) * spread


def given_noise(uniform: Tensor) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    return lambda seed, shape: uniform.expand(len(seed), *shape)


def length(threat: ThreatModel, change: Tensor) -> Tensor:
    flat = change.double().flatten(1)
    return flat.abs().amax(1) if isinstance(threat, Linf) else flat.square().sum(1).sqrt()


def seeds(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64) * 7919


# ---- both


@BOTH
@settings(deadline=None, max_examples=50)
@given(eps=st.lists(st.floats(0.0, 9.0, width=32), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_projection_is_inside_and_idempotent(threat: ThreatModel, eps: list[float], seed: int) -> None:
    clean = images(seed)
    clean[0] = clean[0].round()  # on the border of the box
    far = images(seed + 1, spread=4.0) - 1.5
    radius = torch.tensor(eps)
    inside = threat.project(far, clean, radius)
    assert (length(threat, inside - clean) <= radius * (1 + 1e-6) + ROUNDING).all()
    assert inside.min() >= 0.0
    assert inside.max() <= 1.0
    tolerance = 0.0 if threat is LINF else ROUNDING
    torch.testing.assert_close(threat.project(inside, clean, radius), inside, rtol=0, atol=tolerance)
    assert torch.equal(threat.project(clean, clean, radius), clean)
    nearer = threat.project(far, clean, radius / 2)
    assert (length(threat, nearer - clean) <= length(threat, inside - clean) + ROUNDING).all()


@BOTH
@settings(deadline=None, max_examples=50)
@given(eps=st.floats(0.0, 9.0, width=32), seed=st.integers(0, 2**31))
def test_random_start_is_inside(threat: ThreatModel, eps: float, seed: int) -> None:
    clean = images(seed)
    start = threat.random_start(clean, torch.tensor(eps), noise, seeds(3) + seed)
    assert (length(threat, start - clean) <= eps * (1 + 1e-6) + ROUNDING).all()
    assert start.min() >= 0.0
    assert start.max() <= 1.0


@BOTH
def test_one_radius_per_image_equals_each_alone(threat: ThreatModel) -> None:
    clean, far = images(0), images(1, spread=3.0) - 1.0
    radius, seed = torch.tensor([0.0, 0.1, 1.0]), seeds(3)
    together = threat.project(far, clean, radius), threat.random_start(clean, radius, noise, seed)
    for i in range(3):
        row = slice(i, i + 1)
        alone = (
            threat.project(far[row], clean[row], radius[i]),
            threat.random_start(clean[row], radius[i], noise, seed[row]),
        )
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], theirs, rtol=0, atol=1e-7)


@BOTH
def test_the_widest_distance_is_that_of_black_and_white(threat: ThreatModel) -> None:
    black, white = torch.zeros(1, 3, 4, 5), torch.ones(1, 3, 4, 5)
    widest = threat.widest((3, 4, 5))
    assert widest == pytest.approx(float(length(threat, white - black)))
    assert torch.equal(threat.project(white, black, torch.tensor(widest * 1.001)), white)
    assert not torch.equal(threat.project(white, black, torch.tensor(widest * 0.99)), white)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_the_images(threat: ThreatModel, dtype: torch.dtype) -> None:
    clean, eps = images(0).to(dtype), torch.tensor(0.5)
    moved = threat.step(clean, (images(1) - 0.5).to(dtype), 0.2)
    inside = threat.project(moved, clean, eps)
    start = threat.random_start(clean, eps, noise, seeds(3))
    for found in (moved, inside, start):
        assert found.dtype in (dtype, torch.promote_types(dtype, torch.float32) if threat is LINF else dtype)
        assert torch.isfinite(found).all()
    rounding = 2 * torch.finfo(dtype).eps * math.sqrt(60)
    assert (length(threat, inside - clean) <= 0.5 + rounding).all()


def test_names() -> None:
    assert {name: type(threat) for name, threat in THREATS.items()} == {"linf": Linf, "l2": L2}


# ---- linf


@settings(deadline=None, max_examples=50)
@given(eps=st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_linf_projection_is_nearest(eps: list[float], seed: int) -> None:
    clean, far, radius = images(seed), images(seed + 1, spread=4.0) - 1.5, torch.tensor(eps)
    inside, other = LINF.project(far, clean, radius), LINF.project(images(seed + 2), clean, radius)
    # per pixel, no other admissible value is closer
    assert ((far - inside).abs() <= (far - other).abs() + ROUNDING).all()


def test_linf_random_start_spans_the_ball() -> None:
    clean = torch.full((1, 3, 1, 1), 0.5)
    uniform = torch.tensor([0.0, 0.5, 0.75]).view(1, 3, 1, 1)
    start = LINF.random_start(clean, torch.tensor(0.2), given_noise(uniform), seeds(1))
    torch.testing.assert_close(start.flatten(), torch.tensor([0.3, 0.5, 0.6]))


def test_linf_step_is_signed_and_leaves_flat_pixels() -> None:
    image = torch.full((1, 3, 1, 1), 0.5)
    gradient = torch.tensor([-1e-30, 0.0, 5.0]).view(1, 3, 1, 1)
    moved = LINF.step(image, gradient, torch.tensor(0.1))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert torch.equal(moved, LINF.step(image, gradient, 0.1))


# ---- l2


def test_l2_projection_by_hand() -> None:
    clean = torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1)
    far = clean + torch.tensor([0.3, 0.4, 0.0]).view(1, 3, 1, 1)  # 0.5 away
    found = L2().project(far, clean, torch.tensor(0.25))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.65, 0.7, 0.5]))
    assert torch.equal(L2().project(far, clean, torch.tensor(0.51)), far)  # inside: it stays
    corner = torch.tensor([0.9, 0.5, 0.5]).view(1, 3, 1, 1)
    found = L2().project(corner + far - clean, corner, torch.tensor(0.25))  # the first pixel hits the box
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.7, 0.5]))


@settings(deadline=None, max_examples=50)
@given(eps=st.floats(0.0, 2.0, width=32), seed=st.integers(0, 2**31))
def test_l2_projection_is_nearest_where_the_box_is_far(eps: float, seed: int) -> None:
    clean, far, other = (0.3 + 0.4 * images(seed + i) for i in range(3))
    inside, rival = (L2().project(image, clean, torch.tensor(eps)) for image in (far, other))
    assert (length(L2(), far - inside) <= length(L2(), far - rival) + ROUNDING).all()


def test_l2_step_has_the_length_asked_and_the_gradients_direction() -> None:
    image, gradient = images(0), images(1) - 0.5
    moved = L2().step(image, gradient, torch.tensor([0.1, 0.5, 2.0]))
    torch.testing.assert_close(length(L2(), moved - image).float(), torch.tensor([0.1, 0.5, 2.0]))
    cosine = torch.cosine_similarity((moved - image).flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3))


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38])
def test_l2_step_does_not_depend_on_the_gradients_size(scale: float) -> None:
    image, gradient = images(0), images(1) - 0.5
    expected = L2().step(image, gradient, 0.7)
    torch.testing.assert_close(L2().step(image, gradient * scale, 0.7), expected, rtol=0, atol=1e-6)


def test_l2_step_of_no_gradient_or_a_broken_one() -> None:
    image, gradient = images(0), images(1) - 0.5
    gradient[0] = 0.0
    gradient[1, 0, 0, 0] = torch.nan
    gradient[2, 0, 0, 0] = -torch.inf
    moved = L2().step(image, gradient, 0.1)
    assert torch.isfinite(moved).all()
    assert torch.equal(moved[0], image[0])  # blind: it stays
    assert moved[1, 0, 0, 0] == image[1, 0, 0, 0]
    torch.testing.assert_close(length(L2(), moved - image)[1:].float(), torch.full((2,), 0.1))
    assert moved[2, 0, 0, 0] == image[2, 0, 0, 0] - 0.1
    assert torch.equal(L2().step(image, torch.zeros_like(image), 0.1), image)
    # fp16 gradients underflow and overflow; the step is computed in float32
    half = torch.tensor([6e-8, 0.0, -6e-8]).half().view(1, 3, 1, 1)
    found = L2().step(torch.full((1, 3, 1, 1), 0.5, dtype=torch.float16), half, 0.1).flatten()
    torch.testing.assert_close(found, torch.tensor([0.5707, 0.5, 0.4293]).half(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 2), (3, 16, 16)])
def test_l2_start_is_uniform_in_the_ball(shape: tuple[int, ...]) -> None:
    count, dimensions, eps = 20_000 if shape[1] < 16 else 2_000, math.prod(shape), 0.4
    clean = torch.full((count, *shape), 0.5)
    change = L2().random_start(clean, torch.tensor(eps), noise, seeds(count)) - clean
    radius = length(L2(), change) / eps
    share = torch.sort(
        radius**dimensions
    ).values  # uniform in [0, 1) where the points are uniform in the ball
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    assert (share - grid).abs().max() < 1.63 / math.sqrt(count)  # Kolmogorov-Smirnov at 1 %
    direction = change.double().flatten(1) / (eps * radius[:, None])
    # each coordinate of a uniform direction has mean 0 and variance 1/d, and none goes with another
    assert direction.mean(0).abs().max() < 4.5 / math.sqrt(count * dimensions)
    covariance = direction.T @ direction / count * dimensions
    assert (covariance - torch.eye(dimensions)).abs().max() < 6.5 / math.sqrt(count)
    # and the distance does not go with the direction: the streams are two
    together = ((radius**dimensions - 0.5)[:, None] * direction).mean(0).abs().max()
    assert together < 4.5 * math.sqrt(1 / 12) / math.sqrt(count * dimensions)
    fourth = float((direction**4).mean()) * dimensions * (dimensions + 2)
    assert fourth == pytest.approx(3.0, rel=0.03)  # that of a sphere; of a cube's directions it is less


def test_l2_start_is_a_function_of_the_images_seed() -> None:
    clean, eps, seed = images(0) * 0.2 + 0.4, torch.tensor(0.3), seeds(3)
    start = L2().random_start(clean, eps, noise, seed)
    assert torch.equal(start, L2().random_start(clean, eps, noise, seed))
    turned = L2().random_start(clean.flip(0), eps, noise, seed.flip(0)).flip(0)
    torch.testing.assert_close(start, turned, rtol=0, atol=1e-7)
    assert not torch.equal(start, L2().random_start(clean, eps, noise, seed + 1))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
def test_l2_start_from_the_ends_of_the_noise(uniform: float) -> None:
    clean = images(0)
    start = L2().random_start(clean, torch.tensor(0.5), given_noise(torch.tensor(uniform)), seeds(3))
    assert torch.isfinite(start).all()
    assert (length(L2(), start - clean) <= 0.5 + ROUNDING).all()


def test_normal_numbers() -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24])
    exact = torch.special.ndtri(uniform.double() + 2.0**-25)
    torch.testing.assert_close(normal(uniform).double(), exact, rtol=1e-5, atol=1e-7)
    assert normal(uniform).abs().max() < 5.5
    torch.testing.assert_close(normal(uniform[:1]), -normal(uniform[-1:]), rtol=0, atol=0)
    many = normal(noise(seeds(100), (1000,)))
    assert many.mean().abs() < 4 / math.sqrt(1e5)
    assert many.var() == pytest.approx(1.0, abs=4 * math.sqrt(2 / 1e5))


def test_l2_is_float32_under_autocast() -> None:
    clean, eps, seed = images(0), torch.tensor(0.5), seeds(3)

    def all_three() -> list[Tensor]:
        start = L2().random_start(clean, eps, noise, seed)
        moved = L2().step(start, images(1) - 0.5, torch.tensor(0.4))
        return [start, moved, L2().project(moved, clean, eps)]

    plain = all_three()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(plain, all_three(), strict=True))


def test_per_image_broadcasts_only_one_axis() -> None:
    image = torch.zeros(3, 2, 4, 4)
    assert per_image(0.5, image) == 0.5
    scalar = torch.tensor(0.5)
    assert per_image(scalar, image) is scalar
    assert torch.as_tensor(per_image(torch.ones(3), image)).shape == (3, 1, 1, 1)
