"""From folders to columns: published index sums, and every trap of folders as one line."""

import random
from pathlib import Path

import pytest

from data.class_map import is_imagenet, label_columns, map_classes, read_table
from data.suite import NotForThis, list_suites, load_suite
from data.wnids import wnids
from tests.engine.imagenet_sets import write_objectnet

ALL = wnids()
UNNAMED = tuple(map(str, range(1000)))
NOWHERE = Path("/nowhere")


def columns(suite: str, found, trained=ALL) -> list[tuple[int, ...]]:  # type: ignore[no-untyped-def]
    return list(map_classes(load_suite(suite), found, trained, folder=NOWHERE))


@pytest.mark.parametrize(("suite", "total"), [("a", 102_178), ("r", 86_135)])
def test_200_classes_become_the_published_columns(suite: str, total: int) -> None:
    for trained in (ALL, UNNAMED):
        found = columns(suite, wnids(suite), trained)
        assert sum(column for (column,) in found) == total
        assert found == sorted(found)


def test_shards_with_the_whole_class_list_judge_the_sets_classes_alone() -> None:
    found = columns("a", ALL)
    assert [place for place, row in enumerate(found) if row] == [ALL.index(wnid) for wnid in wnids("a")]
    assert all(row in ((), (place,)) for place, row in enumerate(found))


def test_columns_follow_names_not_places() -> None:
    """A training whose class list has another order."""
    trained = list(ALL)
    random.Random(0).shuffle(trained)
    assert columns("sketch", ALL, trained) == [(trained.index(wnid),) for wnid in ALL]


@pytest.mark.parametrize("order", [sorted(UNNAMED), list(UNNAMED)])
def test_numeric_folders_are_labels_however_they_are_sorted(order: list[str]) -> None:
    """0, 1, 10, 100, ... is how text sorts: folder 10 is label 10 all the same."""
    assert columns("v2-top-images", order) == [(int(name),) for name in order]
    assert columns("v2-top-images", ALL) == [
        (label,) for label in range(1000)
    ]  # made with --classes imagenet


@pytest.mark.parametrize(
    ("suite", "found", "says"),
    [
        (
            "a",
            wnids("a")[:-1],
            "suite a has 200 classes, these shards lack 1 of them: n12267677; unpack the set",
        ),
        ("a", wnids("r"), "suite a has 200 classes, these shards lack 114 of them: .* and 109 more"),
        ("a", (*wnids("a"), "n01440764"), "suite a has 200 classes, and n01440764 is none of them"),
        (
            "a",
            ("tench", "goldfish"),
            r"its shards name their 2 classes tench, goldfish, not by wnids; .* --classes a",
        ),
        ("a", tuple(map(str, range(200))), "not by wnids; give the names: shards index SHARDS --classes a"),
        ("imagenet", ALL[:999], "suite imagenet has 1000 classes, these shards lack 1 of them: n15075141"),
        ("v2-top-images", UNNAMED[:999], "has folders 0 to 999, these shards lack 1 of them: 999; unpack"),
        ("v2-top-images", tuple(map(str, range(1, 1001))), "these shards lack 1 of them: 0; unpack"),
        (
            "cue-conflict",
            ("airplane",),
            "suite cue-conflict has 16 classes, these shards lack 15 of them: bear",
        ),
        ("cue-conflict", (*read_table("cue-conflict"), "zebra"), "zebra are none of its 16 classes"),
    ],
)
def test_folders_that_do_not_fit_are_one_line(suite: str, found: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        columns(suite, found)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, NotForThis)


@pytest.mark.parametrize(
    ("suite", "trained", "says"),
    [
        (
            "a",
            tuple(map(str, range(10))),
            "is for models of ImageNet's classes, and this one has 10 unnamed classes",
        ),
        ("a", ("cat", "dog"), "and this one has classes such as cat, dog; choose other suites"),
        ("a", ALL[:100], r"suite a: 17\d of its 200 classes are none of the model's 100: "),
        ("cue-conflict", ALL[:900], "stands for classes that the model lacks: "),
    ],
)
def test_models_of_other_classes_are_refused(suite: str, trained: tuple[str, ...], says: str) -> None:
    found = tuple(read_table(suite)) if suite == "cue-conflict" else wnids("a")
    with pytest.raises(NotForThis, match=says):
        columns(suite, found, trained)


def test_a_model_of_some_of_imagenets_classes_takes_a_set_that_is_within_them() -> None:
    trained = wnids("r")
    assert columns("imagenet-e", trained[5:9], trained) == [(5,), (6,), (7,), (8,)]
    with pytest.raises(NotForThis, match="labels of all 1000 classes, and the model lacks 800"):
        label_columns(load_suite("real"), trained)
    assert label_columns(load_suite("real"), UNNAMED) == tuple(range(1000))
    assert is_imagenet(trained)
    assert not is_imagenet(UNNAMED[:999])


@pytest.mark.parametrize(
    ("id", "classes", "labels"), [("cue-conflict", 16, 207), ("laion-c", 16, 285), ("imagenet-d", 113, 125)]
)
def test_tables_stand_for_labels_of_their_own(id: str, classes: int, labels: int) -> None:
    table = read_table(id)
    flat = [label for row in table.values() for label in row]
    assert len(table) == classes
    assert len(flat) == len(set(flat)), "no label stands for two classes"
    assert labels == len(flat)


def test_every_table_belongs_to_a_manifest() -> None:
    folder = Path(__file__).parents[2] / "data/class_maps"
    assert {path.stem for path in folder.iterdir()} == {s.id for s in list_suites() if s.classes == "map"}


def test_objectnets_map_is_read_from_its_download(tmp_path: Path) -> None:
    suite, found = load_suite("objectnet"), ("air_freshener", "alarm_clock", "mug")
    with pytest.raises(
        FileNotFoundError, match=r"copy the folder `mappings` of ObjectNet's download to .*/mappings"
    ):
        map_classes(suite, found, ALL, folder=tmp_path)
    write_objectnet(tmp_path)
    assert map_classes(suite, found, ALL, folder=tmp_path) == ((), (409, 530), (504,))
    (tmp_path / "mappings/objectnet_to_imagenet_1k.json").write_text('{"Mug": "cup"}')
    with pytest.raises(ValueError, match="does not hold ObjectNet's mappings"):
        map_classes(suite, found, ALL, folder=tmp_path)
