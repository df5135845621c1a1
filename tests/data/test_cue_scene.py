"""Draws and classes of cue64's scenes: the dial is what it says, and nothing random has another source."""

import numpy as np
import pytest

from data.cue_scene import (
    Draw,
    conflict_classes,
    draw_scenes,
    patch_orders,
    shape_classes,
    texture_classes,
)

MANY = np.arange(40_000)
GOLDEN = [0.8609189253999471, 0.4084008308869108]


@pytest.mark.parametrize("num_classes", [2, 7, 10, 16])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95, 1.0])
def test_the_texture_agrees_with_the_label_as_often_as_dialled(correlation: float, num_classes: int) -> None:
    draws = draw_scenes(MANY, seed=3, split="train")
    labels = shape_classes(MANY, num_classes=num_classes)
    textures = texture_classes(labels, draws, correlation=correlation, num_classes=num_classes)
    agree = correlation + (1 - correlation) / num_classes
    sigma = np.sqrt(agree * (1 - agree) / len(MANY))
    assert abs((textures == labels).mean() - agree) <= 4 * sigma
    if correlation == 0:
        pairs = np.bincount(labels * num_classes + textures, minlength=num_classes**2)
        expected = len(MANY) / num_classes**2
        assert ((pairs - expected) ** 2 / expected).sum() < 2 * num_classes**2  # chi-square of as many cells


def test_the_dial_changes_textures_alone() -> None:
    """More correlation turns textures to the label's own; those of the label stay."""
    draws = draw_scenes(MANY, seed=0, split="train")
    labels = shape_classes(MANY, num_classes=10)
    low, high = (texture_classes(labels, draws, correlation=c, num_classes=10) for c in (0.5, 0.95))
    assert ((low == high) | (high == labels)).all()


def test_conflict_takes_every_other_class_as_often() -> None:
    draws = draw_scenes(MANY, seed=0, split="val")
    labels = shape_classes(MANY, num_classes=10)
    textures = conflict_classes(labels, draws, num_classes=10)
    assert (textures != labels).all()
    steps = np.bincount((textures - labels) % 10, minlength=10)[1:]
    assert abs(steps - len(MANY) / 9).max() < 5 * np.sqrt(len(MANY) / 9)


def test_draws_are_the_same_for_ever() -> None:
    """These numbers are part of the data: changing one changes every picture ever made."""
    draws = draw_scenes(np.array([0, 12345]), seed=0, split="train")
    np.testing.assert_allclose(draws[:, Draw.CONGRUENT], GOLDEN, rtol=0, atol=1e-12)
    assert draws.shape == (2, Draw.END)


def test_columns_are_independent() -> None:
    draws = draw_scenes(MANY[:20_000], seed=0, split="train")
    assert abs(draws.mean(0) - 0.5).max() < 0.012
    correlations = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert abs(correlations).max() < 0.035


def test_patch_orders_are_permutations_of_their_own() -> None:
    orders = patch_orders(MANY[:50], seed=0, split="val")
    assert (np.sort(orders, axis=1) == np.arange(64)).all()
    assert len({order.tobytes() for order in orders}) == 50
