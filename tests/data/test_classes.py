"""Class lists from files and shards, and folders that are named by number."""

from pathlib import Path

import pytest

from data.classes import check_numbers, label_folders, read_classes
from data.shards import make
from tests.data.trees import write_images


def test_lists_as_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("cat\r\nbig dog\n\n")
    assert read_classes(path) == ("cat", "big dog")
    path.write_text("\ufeffn01440764 tench, Tinca tinca\nn01443537\tgoldfish\nn01484850\n", encoding="utf-8")
    assert read_classes(path) == ("n01440764", "n01443537", "n01484850")


def test_the_list_of_other_shards(tmp_path: Path) -> None:
    write_images(tmp_path / "tree", {"b": 1, "a": 1})
    make(tmp_path / "tree", tmp_path / "s", split="train")
    assert read_classes(tmp_path / "s") == read_classes(tmp_path / "s" / "index.json") == ("a", "b")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "names no class"),
        (b"a\n\nb\n", "line 2: empty"),
        (b"a\nb\na\n", "names class 'a' twice"),
        (b"\xff\xd8\xff", "is not UTF-8 text"),
    ],
)
def test_broken_lists(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_classes(tmp_path / "list.txt")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no class list"):
        read_classes(tmp_path / "list.txt")


def test_folders_by_name_or_by_number() -> None:
    classes = ["ant", "bee", "cat"]
    assert label_folders(["bee", "cat"], classes, where="x") == {"bee": 1, "cat": 2}
    assert label_folders(["0", "2"], classes, where="x") == {"0": 0, "2": 2}
    assert label_folders(["1"], ["2", "1"], where="x") == {"1": 1}, "the list's own names come first"
    for folders in (["3"], ["0", "ant"], ["00"], ["dog"]):
        with pytest.raises(ValueError, match="x has 1 folders that are not in the class list"):
            label_folders(folders, classes, where="x")


def test_a_gap_between_numbers_is_refused() -> None:
    check_numbers(["0", "1", "2"], where="x")
    check_numbers(["4", "5"], where="x")
    check_numbers(["0", "2", "b"], where="x")
    with pytest.raises(
        ValueError, match=r"x has folders 0 to 9, but 1, 2, 3, 4, 5 and 3 more missing; unpack"
    ):
        check_numbers(["0", "9"], where="x")
