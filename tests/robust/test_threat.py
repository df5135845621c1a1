"""Linf: projection, step and random start, as properties over random radii, and by numbers worked out by
hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.threat import Linf, per_image

LINF = Linf()
ROUNDING = 2e-7  # of float32 bounds near 1


def images(seed: int, *, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, 4, 5, generator=generator) * spread


@settings(deadline=None, max_examples=50)
@given(eps=st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_projection_is_inside_idempotent_and_nearest(eps: list[float], seed: int) -> None:
    clean = images(seed)
    far = images(seed + 1, spread=4.0) - 1.5
    radius = torch.tensor(eps)
    inside = LINF.project(far, clean, radius)
    distance = (inside - clean).abs().flatten(1).amax(1)
    assert (distance <= radius + ROUNDING).all()
    assert inside.min() >= 0.0
    assert inside.max() <= 1.0
    assert torch.equal(LINF.project(inside, clean, radius), inside)
    assert torch.equal(LINF.project(clean, clean, radius), clean)
    # nearest: per pixel, no other admissible value is closer
    other = LINF.project(images(seed + 2), clean, radius)
    assert ((far - inside).abs() <= (far - other).abs() + ROUNDING).all()


@settings(deadline=None, max_examples=50)
@given(eps=st.floats(0.0, 1.0, width=32), seed=st.integers(0, 2**31))
def test_random_start_is_inside(eps: float, seed: int) -> None:
    clean, noise = images(seed), images(seed + 1)
    start = LINF.random_start(clean, torch.tensor(eps), noise)
    assert ((start - clean).abs() <= eps + ROUNDING).all()
    assert start.min() >= 0.0
    assert start.max() <= 1.0


def test_random_start_spans_the_ball() -> None:
    clean = torch.full((1, 3, 1, 1), 0.5)
    noise = torch.tensor([0.0, 0.5, 0.75]).view(1, 3, 1, 1)
    start = LINF.random_start(clean, torch.tensor(0.2), noise)
    torch.testing.assert_close(start.flatten(), torch.tensor([0.3, 0.5, 0.6]))


def test_step_is_signed_and_leaves_flat_pixels() -> None:
    image = torch.full((1, 3, 1, 1), 0.5)
    gradient = torch.tensor([-1e-30, 0.0, 5.0]).view(1, 3, 1, 1)
    moved = LINF.step(image, gradient, torch.tensor(0.1))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    assert torch.equal(moved, LINF.step(image, gradient, 0.1))


def test_one_radius_per_image_equals_each_alone() -> None:
    clean, far = images(0), images(1, spread=3.0) - 1.0
    radius = torch.tensor([0.0, 0.1, 1.0])
    together = LINF.project(far, clean, radius)
    for i in range(3):
        alone = LINF.project(far[i : i + 1], clean[i : i + 1], radius[i])
        assert torch.equal(together[i : i + 1], alone)


def test_per_image_broadcasts_only_one_axis() -> None:
    image = torch.zeros(3, 2, 4, 4)
    assert per_image(0.5, image) == 0.5
    scalar = torch.tensor(0.5)
    assert per_image(scalar, image) is scalar
    assert torch.as_tensor(per_image(torch.ones(3), image)).shape == (3, 1, 1, 1)
