"""cue64 as shards: the same bytes however they are made, labels and textures as dialled, each shift what it says."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from data.cue64 import FOLDERS, SHIFTED, Cue64, make_cue64, paint, part_of, texture_of
from data.cue_scene import PATCH, Painter, draw_scenes, make_canvas
from data.cue_shapes import SHAPES
from data.index import DatasetIndex, load_index
from data.suite import load_suite
from data.verify import verify

SMALL = Cue64(num_train=120, num_val=40)
SAMPLES_PER_SHARD = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cue") / "shards"
    made = list(make_cue64(root, SMALL, samples_per_shard=SAMPLES_PER_SHARD, num_workers=0))
    assert [folder.path.name for folder in made] == list(FOLDERS)
    assert not any(folder.is_reused for folder in made)
    return root


@pytest.fixture(scope="module")
def painters() -> dict[str, Painter]:
    return {part: Painter(make_canvas(part, num_classes=10)) for part in ("train", "test")}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pictures(index: DatasetIndex) -> dict[str, tuple[int, NDArray[np.uint8]]]:
    """Key -> (label, pixels)."""
    found = {}
    for key in range(index.num_samples):
        shard, _ = index.locate(key)
        record = index.record(key)
        with (index.root / index.shards[shard].name).open("rb") as file:
            file.seek(int(record["offset"]))
            content = file.read(int(record["size"]))
        with Image.open(io.BytesIO(content)) as image:
            found[index.name(key)] = int(record["label"]), np.asarray(image.convert("RGB"))
    return found


def number(key: str) -> int:
    return int(key.rpartition("/")[2])


def test_every_folder_is_whole_and_says_what_it_is(root: Path) -> None:
    assert {path.name for path in root.iterdir()} == set(FOLDERS)  # nothing half done beside them
    for name in FOLDERS:
        assert not verify(root / name, full=True).problems
        index = load_index(root / name)
        assert index.num_samples == (120 if name == "train" else 40)
        assert index.classes == SHAPES[:10]
        assert index.description.split == name
        assert len(index.shards) == 4


def test_every_shift_has_a_manifest() -> None:
    for name in SHIFTED:
        assert "shards make cue64" in load_suite(f"cue64-{name}").make


def test_bytes_are_equal_whatever_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    made = make_cue64(tmp_path / "again", SMALL, samples_per_shard=SAMPLES_PER_SHARD, num_workers=3)
    assert len(list(made)) == len(FOLDERS)
    assert contents(tmp_path / "again") == contents(root)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_picture_depends_on_neither_order_nor_company(folder: str, painters: dict[str, Painter]) -> None:
    painter = painters[part_of(folder)]
    many = [(key, picture.tobytes()) for key, _, picture in paint(folder, np.arange(60), SMALL, painter)]
    turned = paint(folder, np.arange(59, -1, -7), SMALL, painter)
    assert [(key, picture.tobytes()) for key, _, picture in turned] == many[59::-7]


def test_a_smaller_set_is_the_beginning_of_a_larger_one(root: Path, tmp_path: Path) -> None:
    smaller = Cue64(num_train=40, num_val=20)
    list(make_cue64(tmp_path / "s", smaller, samples_per_shard=1000, num_workers=0))
    for name in FOLDERS:
        many, few = pictures(load_index(root / name)), pictures(load_index(tmp_path / "s" / name))
        assert sorted(map(number, few)) == list(range(40 if name == "train" else 20))
        for key, (label, pixels) in few.items():
            assert many[key][0] == label
            np.testing.assert_array_equal(many[key][1], pixels)


def test_splits_and_seeds_differ(painters: dict[str, Painter]) -> None:
    painter = painters["train"]
    first = [p.tobytes() for _, _, p in paint("train", np.arange(20), SMALL, painter)]
    assert len(set(first)) == 20
    other = [p.tobytes() for _, _, p in paint("val", np.arange(20), SMALL, painter)]
    seeded = [p.tobytes() for _, _, p in paint("train", np.arange(20), Cue64(seed=1), painter)]
    assert not set(first) & set(other)
    assert not set(first) & set(seeded)


def test_the_label_is_the_shape_in_the_key(root: Path) -> None:
    for name in FOLDERS:
        found = pictures(load_index(root / name))
        assert all(key.startswith(f"shape{label}") for key, (label, _) in found.items())
        assert set(np.bincount([label for label, _ in found.values()])) == {len(found) // 10}


def test_conflict_is_never_congruent_and_names_both_classes(root: Path) -> None:
    val = pictures(load_index(root / "val"))
    of_val = {number(key): (label, pixels) for key, (label, pixels) in val.items()}
    for key, (label, pixels) in pictures(load_index(root / "cue64-conflict")).items():
        texture = texture_of(key)
        assert texture is not None
        assert 0 <= texture < 10
        assert texture != label == of_val[number(key)][0]
        assert pixels.shape == of_val[number(key)][1].shape == (64, 64, 3)


def test_the_texture_in_the_key_is_the_texture_in_the_picture(painters: dict[str, Painter]) -> None:
    """Painted again with the texture that the key names, the picture is the same; with any other it is not."""
    images = np.arange(20)
    rows = draw_scenes(images, seed=0, split="val")
    for (key, label, picture), row in zip(
        paint("cue64-conflict", images, SMALL, painters["test"]), rows, strict=True
    ):
        same = [t for t in range(10) if painters["test"].scene(row, label, t).tobytes() == picture.tobytes()]
        assert same == [texture_of(key)]


def test_textures_of_no_class_have_no_number() -> None:
    assert texture_of("shape3_texture7/000123") == 7
    assert texture_of("shape3_unseen1/000123") is None
    assert texture_of("shape3/000123") is None


def test_silhouettes_have_two_values_and_the_shape_of_the_scene(root: Path) -> None:
    for _, pixels in pictures(load_index(root / "cue64-silhouette")).values():
        assert set(np.unique(pixels)) == {0, 255}
        assert (pixels == pixels[..., :1]).all()
        assert 0.05 < (pixels == 0).mean() < 0.6


def test_a_sketch_follows_the_silhouette_s_edge(root: Path) -> None:
    filled = {
        number(k): p[..., 0] == 0 for k, (_, p) in pictures(load_index(root / "cue64-silhouette")).items()
    }
    for key, (_, pixels) in pictures(load_index(root / "cue64-sketch")).items():
        inside, dark = filled[number(key)], pixels[..., 0] < 128
        edge = np.zeros_like(inside)
        edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
        edge[1:] |= inside[1:] != inside[:-1]
        assert dark[edge].mean() > 0.95
        assert dark.mean() < 0.35
        assert dark.mean() < 3.5 * edge.mean()


def test_shuffled_keeps_the_multiset_of_patches(root: Path) -> None:
    def patches(pixels: NDArray[np.uint8]) -> list[bytes]:
        return [
            pixels[y : y + PATCH, x : x + PATCH].tobytes()
            for y in range(0, 64, PATCH)
            for x in range(0, 64, PATCH)
        ]

    val, shuffled = (pictures(load_index(root / name)) for name in ("val", "cue64-shuffled"))
    assert val.keys() == shuffled.keys()
    moved = []
    for key, (label, pixels) in shuffled.items():
        assert label == val[key][0]
        assert sorted(patches(pixels)) == sorted(patches(val[key][1]))
        moved.append((pixels != val[key][1]).any(-1).mean())
    assert np.mean(moved) > 0.85


def test_retextured_changes_nothing_outside_the_shape(root: Path) -> None:
    shapes = {number(k): p[..., 0] for k, (_, p) in pictures(load_index(root / "cue64-silhouette")).items()}
    val = {number(key): pixels for key, (_, pixels) in pictures(load_index(root / "val")).items()}
    for key, (_, pixels) in pictures(load_index(root / "cue64-retextured")).items():
        different = (pixels != val[number(key)]).any(-1)
        assert different.mean() > 0.02
        assert distance_transform_edt(shapes[number(key)])[different].max() < 2.5  # soft edges


def test_what_is_whole_is_used_and_the_rest_made(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "cue64-sketch")
    again = list(make_cue64(copy, SMALL, samples_per_shard=SAMPLES_PER_SHARD, num_workers=0))
    assert [made.path.name for made in again if not made.is_reused] == ["cue64-sketch"]
    assert contents(copy) == contents(root)


def test_an_interrupted_folder_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_cue64(tmp_path / "s", SMALL, num_workers=0)
    assert next(made).path.name == "train"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.cue64.save_dataset", stop)
    with pytest.raises(KeyboardInterrupt):
        next(made)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["train"]


def test_other_settings_in_the_same_place_are_refused(root: Path) -> None:
    before = contents(root)
    for settings in (
        Cue64(seed=1, num_train=120, num_val=40),
        Cue64(correlation=0.9, num_train=120, num_val=40),
        Cue64(num_classes=8, num_train=120, num_val=40),
        Cue64(num_train=121, num_val=40),
    ):
        with pytest.raises(
            ValueError, match=r"train holds 120 images of .*; remove it, or choose another DST"
        ):
            make_cue64(root, settings)
    assert contents(root) == before


def test_bad_places_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        make_cue64(tmp_path / "file", SMALL)
    (tmp_path / "d" / "val").mkdir(parents=True)
    (tmp_path / "d" / "val" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no index"):
        make_cue64(tmp_path / "d", SMALL)
    with pytest.raises(ValueError, match="samples_per_shard 0"):
        make_cue64(tmp_path / "e", SMALL, samples_per_shard=0)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "file", "notes.txt", "val"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"correlation": 1.01}, "correlation 1.01 is a probability"),
        ({"correlation": -0.1}, "correlation -0.1 is a probability"),
        ({"correlation": float("nan")}, "correlation nan is a probability"),
        ({"num_train": 0}, "num_train 0 is below"),
        ({"num_val": 9}, "num_val 9 is below"),
        ({"num_classes": 1}, "num_classes 1: cue64 has 2 to 16"),
        ({"num_classes": 17}, "num_classes 17: cue64 has 2 to 16"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Cue64(**values)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
