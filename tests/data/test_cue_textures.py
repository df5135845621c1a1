"""cue64's shapes and textures: all different, none shared between training and tests, photographs cut apart."""

import importlib.util
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import cue_photos
from data.cue_ground import cover_tile, ground_tile
from data.cue_photos import PHOTOS, TEST_COLUMNS, TRAIN_COLUMNS, photo_field
from data.cue_shapes import OUTLINES, SHAPES, shape_fields
from data.cue_textures import SIDE, TEXTURES, UNSEEN, tiles
from data.cue_turing import LABYRINTH, SPOTS, turing_field
from data.order import hash64, uniform


def test_there_is_a_texture_for_every_shape() -> None:
    assert len(TEXTURES) == len(SHAPES) == len(set(SHAPES)) == 16
    assert len(set(TEXTURES)) == 16


def test_textures_of_the_retextured_test_are_no_class() -> None:
    assert len(UNSEEN) == 5
    assert not set(UNSEEN) & set(TEXTURES)


@pytest.mark.parametrize("family", [*TEXTURES, *UNSEEN])
def test_tiles_have_contrast_and_are_made_again_alike(family: str) -> None:
    made = tiles(family, "test")
    for tile, again in zip(made, tiles(family, "test"), strict=True):
        assert tile.shape == (SIDE, SIDE)
        assert tile.dtype == np.uint8
        assert tile.std() > 50
        np.testing.assert_array_equal(tile, again)


def test_training_and_tests_share_no_tile() -> None:
    for family in TEXTURES:
        for ours, theirs in product(tiles(family, "train"), tiles(family, "test")):
            assert (ours != theirs).mean() > 0.05, family
    assert (ground_tile("train", 0) != ground_tile("test", 0)).mean() > 0.5


def test_photographs_are_cut_into_disjoint_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a photograph a picture whose grey levels tell the column: no level appears in both parts."""
    assert TRAIN_COLUMNS[1] <= TEST_COLUMNS[0]
    columns = np.repeat((np.arange(512) // 2).astype(np.uint8)[None], 512, axis=0)
    monkeypatch.setattr(cue_photos, "read_photo", lambda name: Image.fromarray(columns))
    for name, number in product(PHOTOS, range(4)):
        train = photo_field(name, is_train=True, number=number, side=SIDE)
        test = photo_field(name, is_train=False, number=number, side=SIDE)
        assert train.shape == test.shape == (SIDE, SIDE)
        assert train.max() < TRAIN_COLUMNS[1] / 2 <= test.min()


def test_a_missing_scikit_image_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="scikit-image, which is missing: pip install"):
        cue_photos.read_photo("grass")


def test_another_photograph_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("L", (512, 512)).save(tmp_path / "data" / "grass.png")

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(ValueError, match=r"grass.png is not the photograph"):
        cue_photos.read_photo("grass")
    with pytest.raises(ValueError, match=r"brick.png is not the photograph"):
        cue_photos.read_photo("brick")


def test_covers_leave_most_of_a_shape() -> None:
    for number in range(4):
        assert 0.03 < (cover_tile("train", number) > 127).mean() < 0.25


def test_reactions_differ_and_cover_the_torus() -> None:
    seed = uniform(hash64("test", np.arange(64 * 64))).reshape(64, 64)
    spots, labyrinth = (turing_field(reaction, side=64, seed=seed) for reaction in (SPOTS, LABYRINTH))
    assert (spots > 0.2).mean() < (labyrinth > 0.2).mean() < 0.7
    for field in (spots, labyrinth):
        assert all(quarter.std() > 0.05 for quarter in np.split(field, 4))


def test_shapes_differ_even_turned() -> None:
    """No shape, turned by up to 35 degrees, covers another: overlap over union stays low."""
    masks = [field >= 128 for field in shape_fields(len(OUTLINES))]
    for first, second in combinations(range(len(masks)), 2):
        for angle in range(-35, 36, 7):
            turned = np.asarray(Image.fromarray(masks[first].astype(np.uint8) * 255).rotate(angle)) > 127
            overlap = (turned & masks[second]).sum() / (turned | masks[second]).sum()
            assert overlap < 0.8, (SHAPES[first], SHAPES[second], angle)


def test_a_field_tells_distances() -> None:
    """Along the arrow's shaft, 0.2 units thick to either side of the middle, depth grows by 6 levels a pixel."""
    arrow = shape_fields(7)[SHAPES.index("arrow")].astype(float)
    column = arrow[:, 80]
    inside = np.flatnonzero(column >= 128)
    assert len(inside) == 40
    np.testing.assert_allclose(np.diff(column[inside[0] - 10 : inside[0] + 10]), 6, atol=0.51)
