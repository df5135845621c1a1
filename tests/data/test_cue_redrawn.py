"""cue64's corruptions and renditions: pure functions of picture and seed, stronger is further away, the shape stays."""

import numpy as np
import pytest
from numpy.typing import NDArray

from data.cue64 import Cue64, paint
from data.cue_corruptions import CORRUPTIONS, NUM_STRENGTHS, corrupt
from data.cue_renditions import STYLES, render
from data.cue_scene import Painter, draw_scenes, make_canvas

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(make_canvas("test", num_classes=4))


@pytest.fixture(scope="module")
def scenes(painter: Painter) -> list[Picture]:
    found = paint("val", np.arange(8), Cue64(num_classes=4), painter)
    return [np.asarray(picture) for _, _, picture in found]


def distance(one: Picture, other: Picture) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_a_function_of_picture_strength_and_seed(kind: str, scenes: list[Picture]) -> None:
    change = CORRUPTIONS[kind]
    before = [scene.copy() for scene in scenes]
    mean = []
    for strength in range(NUM_STRENGTHS):
        found = [change(scene, strength, seed) for seed, scene in enumerate(scenes)]
        assert all(f.shape == (64, 64, 3) and f.dtype == np.uint8 for f in found)
        again = [change(scene, strength, seed) for seed, scene in enumerate(scenes)]
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
        mean.append(np.mean([distance(f, s) for f, s in zip(found, scenes, strict=True)]))
    assert np.all(np.diff(mean) >= 0), "stronger is further away"
    assert 0.5 < mean[0] < mean[-1] < 100
    assert all(np.array_equal(a, b) for a, b in zip(scenes, before, strict=True)), (
        "what goes in stays as it is"
    )


def test_kinds_and_strengths_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[tuple[str, int], int] = {}

    def counted(name: str) -> object:
        def change(image: Picture, strength: int, seed: int) -> Picture:
            counts[name, strength] = counts.get((name, strength), 0) + 1
            return image

        return change

    for name in CORRUPTIONS:
        monkeypatch.setitem(CORRUPTIONS, name, counted(name))  # type: ignore[arg-type]
    blank = np.zeros((8, 8, 3), np.uint8)
    for seed in range(5000):
        corrupt(blank, seed)
    assert len(counts) == len(CORRUPTIONS) * NUM_STRENGTHS
    assert 60 < min(counts.values()) <= max(counts.values()) < 145  # 100 expected


def test_noise_has_the_strength_it_says() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    noise = CORRUPTIONS["gaussian_noise"](grey, 2, 5) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.15, rel=0.03)
    shot = CORRUPTIONS["shot_noise"](grey, 2, 5) / 255
    assert shot.std() == pytest.approx(np.sqrt(0.5 / 16), rel=0.03)
    spoiled = CORRUPTIONS["impulse_noise"](grey, 4, 5)
    assert (spoiled != 128).mean() == pytest.approx(0.2, abs=0.02)
    blocks = CORRUPTIONS["pixelate"](np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3), 2, 0)
    assert (blocks[:63, :63].reshape(21, 3, 21, 3, 3) == blocks[:63:3, :63:3].reshape(21, 1, 21, 1, 3)).all()


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_shape(style: str, painter: Painter) -> None:
    """A shape of one grey on a ground of another is still told from it by brightness alone."""
    rows = draw_scenes(np.arange(6), seed=0, split="val")
    for seed, row in enumerate(rows):
        inside = np.asarray(painter.silhouette(row, seed % 4))[..., 0] == 0
        flat = np.where(inside, 200, 60).astype(np.uint8)[..., None].repeat(3, axis=2)
        found = STYLES[style](flat, seed)
        assert found.shape == flat.shape
        assert found.dtype == np.uint8
        assert np.array_equal(found, STYLES[style](flat, seed))
        grey = found.astype(float).mean(-1)
        assert abs(grey[inside].mean() - grey[~inside].mean()) > 60


def test_styles_look_as_they_are_called(scenes: list[Picture]) -> None:
    for seed, scene in enumerate(scenes):
        assert len(np.unique(STYLES["poster"](scene, seed).reshape(-1, 3), axis=0)) == 4
        assert len(np.unique(STYLES["halftone"](scene, seed).reshape(-1, 3), axis=0)) == 2
        assert set(np.unique(STYLES["woodcut"](scene, seed))) == {0, 255}
    painted = [STYLES["painting"](scene, seed) for seed, scene in enumerate(scenes)]
    assert all(calm(p) > calm(scene) for p, scene in zip(painted, scenes, strict=True))
    assert len({render(scenes[0], seed).tobytes() for seed in range(12)}) > 3


def calm(picture: Picture) -> float:
    """Share of the neighbours of one brightness: strokes are flat."""
    return float((np.abs(np.diff(picture.astype(float).mean(-1), axis=1)) < 2).mean())


@pytest.mark.parametrize("folder", ["cue64-corrupted", "cue64-rendition"])
def test_the_suites_show_val_s_scenes_under_its_keys(folder: str, painter: Painter) -> None:
    settings = Cue64(num_classes=4)
    val = {key: (label, p.tobytes()) for key, label, p in paint("val", np.arange(12), settings, painter)}
    found = {key: (label, p.tobytes()) for key, label, p in paint(folder, np.arange(12), settings, painter)}
    assert found.keys() == val.keys()
    for key, (label, pixels) in found.items():
        assert label == val[key][0]
        assert pixels != val[key][1]
    other = [p.tobytes() for _, _, p in paint(folder, np.arange(12), Cue64(num_classes=4, seed=1), painter)]
    assert not set(other) & {pixels for _, pixels in found.values()}
