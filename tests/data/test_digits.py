"""The demo data: real scans, one split for everyone, and a clear line when scikit-learn is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data.digits import write_digits
from data.order import hash64
from data.shifts import SHIFTS

GOLDEN_VAL = ["0002", "0006", "0008", "0014", "0018", "0019", "0020", "0029"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "digits"
    write_digits(root)
    return root


def numbers(root: Path, split: str) -> list[str]:
    return sorted(path.stem for path in (root / split).rglob("*.png"))


def test_every_scan_is_written_once(tree: Path) -> None:
    assert sorted(numbers(tree, "train") + numbers(tree, "val")) == [
        f"{number:04d}" for number in range(1797)
    ]
    assert [path.name for path in tree.parent.iterdir()] == ["digits"]


def test_labels_and_split_are_right(tree: Path) -> None:
    target = load_digits().target
    for split, share in (("train", 0.8), ("val", 0.2)):
        for label in range(10):
            members = [int(path.stem) for path in (tree / split / str(label)).iterdir()]
            assert (target[members] == label).all()
            assert abs(len(members) - share * (target == label).sum()) <= 0.5


def test_the_split_is_the_same_for_everyone(tree: Path) -> None:
    assert numbers(tree, "val")[:8] == GOLDEN_VAL


def test_pictures_show_the_scans(tree: Path) -> None:
    """Averaged back over 4x4 blocks, a picture correlates with its scan: smooth, not rearranged."""
    scans = load_digits().images
    for path in sorted((tree / "val").rglob("*.png"))[::60]:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert image.size == (32, 32)
            blocks = np.asarray(image)[:, :, 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(blocks.ravel(), scans[int(path.stem)].ravel())[0, 1] > 0.97


def test_another_size(tmp_path: Path) -> None:
    write_digits(tmp_path / "d", size=8)
    path = next((tmp_path / "d" / "val" / "3").iterdir())
    with Image.open(path) as image:
        expected = np.rint(load_digits().images[int(path.stem)] * 255 / 16)
        assert np.array_equal(np.asarray(image)[:, :, 1], expected)
    with pytest.raises(ValueError, match="size 7"):
        write_digits(tmp_path / "e", size=7)


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="not an empty folder"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_missing_scikit_learn_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"\[demo\]"):
        write_digits(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_has_the_held_out_scans_under_their_names(tree: Path, name: str) -> None:
    """So that its verdicts pair up with the clean ones, image by image; every picture is the shift of its scan."""
    paths = sorted(path.relative_to(tree / "val") for path in (tree / "val").rglob("*.png"))
    folder = tree / f"digits-{name}"
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.png")) == paths
    for path in paths[::40]:
        with Image.open(tree / "val" / path) as clean, Image.open(folder / path) as shifted:
            assert shifted.mode == "RGB"
            seed = int(hash64("digits shift", name, path.with_suffix("").as_posix()))
            assert np.array_equal(np.asarray(shifted), SHIFTS[name](np.asarray(clean), seed))


def test_every_run_writes_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tree)


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}
