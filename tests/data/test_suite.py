"""Manifests of evaluation sets: all that ship are right, and what is wrong with another is said in one line."""

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pytest
import yaml

import data.suite
from data.description import INDEX_FILE
from data.digits import write_digits
from data.shifts import SHIFTS
from data.suite import Suite, list_suites, load_suite, own_suite, suites_called
from data.suite_folders import find_parts, find_shards, found_suites, wanted_parts

GOOD = {
    "id": "other",
    "title": "Other",
    "description": "something else",
    "source": "somewhere",
    "license": "CC0",
    "make": "shards make A B",
}


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of manifests in place of ours, with `clean` in it."""
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "clean.yaml").write_text(yaml.safe_dump(GOOD | {"id": "clean"}))
    monkeypatch.setattr(data.suite, "_MANIFESTS", folder)
    return folder


def write(folder: Path, text: str | dict[str, object], name: str = "other") -> None:
    (folder / f"{name}.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text))


def shards_at(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / INDEX_FILE).write_text("{}")


def test_every_manifest_loads_and_bears_its_files_name() -> None:
    files = {path.stem for path in Path(data.suite.__file__).with_name("suites").iterdir()}
    assert [suite.id for suite in list_suites()] == ["clean", *sorted(files - {"clean"})]
    assert all(load_suite(suite.id) == suite for suite in list_suites())


def test_there_is_a_manifest_for_every_shift_of_the_digits(tmp_path: Path) -> None:
    shifted = {suite.id for suite in list_suites() if suite.id.startswith("digits-")}
    assert shifted == {f"digits-{name}" for name in SHIFTS}
    write_digits(tmp_path / "digits", size=8)
    assert {path.name for path in (tmp_path / "digits").iterdir()} == {"train", "val", *shifted}


def test_manifests_state_the_strengths_of_the_code() -> None:
    from data.shifts import BLUR_SIGMA, CONTRAST, NOISE_SIGMA

    assert f"sigma {NOISE_SIGMA:g} " in load_suite("digits-noise").description
    assert f"sigma {BLUR_SIGMA:g} px at 32 px" in load_suite("digits-blur").description
    assert CONTRAST == 0.5
    assert "half" in load_suite("digits-contrast").description


def test_interpolations_are_those_of_the_transform() -> None:
    from data.transform import Interpolation

    assert get_args(data.suite.Interpolation) == get_args(Interpolation)


def test_listing_imports_nothing_heavy() -> None:
    program = (
        "import sys, data.suite; data.suite.list_suites(); "
        "print([name for name in ('torch', 'timm', 'PIL', 'numpy', 'scipy') if name in sys.modules])"
    )
    root = Path(data.suite.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert found.stdout.strip() == "[]"


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"suite 'digits-nosie' is unknown; did you mean digits-noise\?"):
        load_suite("digits-nosie")
    with pytest.raises(ValueError, match=r"suite '../clean' is unknown"):
        load_suite("../clean")
    with pytest.raises(ValueError, match=r"suite 'zzz' is unknown; known are clean, 3dcc, a, c, "):
        load_suite("zzz")


def test_own_shards_need_no_manifest() -> None:
    suite = own_suite("my_photos")
    assert (suite.id, suite.base, suite.resize, suite.interpolation) == ("my_photos", None, None, None)
    assert "my_photos" in suite.make
    with pytest.raises(FrozenInstanceError):
        suite.id = "x"  # type: ignore[misc]
    for name in ("../up", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="id "):
            own_suite(name)


def test_optional_fields_are_read(manifests: Path) -> None:
    write(manifests, GOOD | {"base": "clean", "resize": "crop", "crop_pct": 0.9, "interpolation": "bilinear"})
    expected = Suite(**GOOD, base="clean", resize="crop", crop_pct=0.9, interpolation="bilinear")
    assert list_suites()[1] == load_suite("other") == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"crop": 1}, r"'crop' is not a field; did you mean crop_pct\?"),
        ({7: 1}, r"'?7'? is not a field; did you mean"),
        ({"resize": "center"}, r"resize 'center' is unknown; use null, crop, squash, none"),
        ({"resize": ["crop"]}, r"resize \['crop'\] is unknown; use null, crop"),
        (
            {"interpolation": "cubic"},
            r"interpolation 'cubic' is unknown; use null, nearest, bilinear, bicubic",
        ),
        ({"metric": "top5"}, r"metric 'top5' is unknown; use top1, error"),
        ({"classes": "imagenet"}, r"classes 'imagenet' is unknown; use same, wnids, numbers, map, objectnet"),
        ({"decide": "any"}, r"decide 'any' is unknown; use all, masked, mean, real"),
        ({"num_images": -1}, r"num_images -1 must be a whole number, 0 or more"),
        ({"severities": True}, r"severities True must be a whole number"),
        ({"on_the_fly": "yes"}, r"on_the_fly 'yes' must be true or false"),
        ({"folders": "a"}, r"folders 'a' must be a list of folder names; write \[name, other\]"),
        ({"folders": ["../up"]}, r"folders \['../up'\] must be a list of folder names"),
        ({"parts": ["fog"]}, r"parts \['fog'\] must be groups with a list of kinds each"),
        ({"parts": {"weather": "fog"}}, r"parts.weather 'fog' must be a list of folder names"),
        ({"images": "nothing"}, r"images 'nothing' is no suite; known are clean, other"),
        ({"title": ""}, r"title '' must be one line of text; put it in quotes"),
        ({"license": 4.0}, r"license 4\.0 must be one line of text"),
        ({"description": "two\nlines"}, r"description 'two\\nlines' must be one line of text"),
        ({"base": "cleen"}, r"base 'cleen' is no suite; known are clean, other"),
        ({"base": 3}, r"base 3 must be one line of text"),
        ({"crop_pct": 0.9}, r"crop_pct 0\.9 counts for resize crop alone, and resize is None; remove one"),
        ({"crop_pct": 87.5, "resize": "crop"}, r"crop_pct 87\.5 must be a number above 0 and at most 1"),
        ({"crop_pct": True, "resize": "crop"}, r"crop_pct True must be a number above 0 and at most 1"),
        ({"crop_pct": "x", "resize": "crop"}, r"crop_pct 'x' must be a number above 0 and at most 1"),
        ({"crop_pct": float("nan"), "resize": "crop"}, r"crop_pct nan must be a number above 0"),
        ({"id": "another"}, r"id 'another' differs from the file's name; make both the same"),
        ({"id": "a b"}, r"id 'a b' is a folder's name too; use letters"),
    ],
)
def test_a_wrong_value_is_one_line(manifests: Path, change: dict[str, object], says: str) -> None:
    write(manifests, GOOD | change)
    for read in (list_suites, lambda: load_suite("other")):
        with pytest.raises(ValueError, match=rf"suites/other\.yaml: {says}") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({k: v for k, v in GOOD.items() if k != "make"}, "make missing and without default; add it"),
        ({"id": "other"}, "title, description, source, license, make missing and without default; add them"),
        ("", "holds NoneType; write the fields of a suite"),
        ("[1, 2]", "holds list; write the fields of a suite"),
        ("id: [", "while parsing a flow"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_broken_manifest_is_one_line(manifests: Path, text: str | dict[str, object], says: str) -> None:
    write(manifests, text)
    with pytest.raises(ValueError, match=rf"suites/other\.yaml: {says}") as caught:
        load_suite("other")
    assert "\n" not in str(caught.value)


def test_shards_are_found_by_id(tmp_path: Path) -> None:
    for name in ("val", "digits-noise", "clean", "digits-blur", "mine", ".digits-sketch.partial-x1"):
        shards_at(tmp_path / name)
    (tmp_path / "digits-contrast").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert find_shards(tmp_path, "digits-noise") == tmp_path / "digits-noise"
    assert find_shards(tmp_path, "digits-contrast") is None, "no index: an unfinished or foreign folder"
    assert find_shards(tmp_path, "notes.txt") is None
    assert find_shards(tmp_path / "nowhere", "val") is None
    assert found_suites(tmp_path) == ["clean", "digits-blur", "digits-noise", "mine"]


def test_other_names_of_a_folder_count(tmp_path: Path) -> None:
    """Folders keep the names that releases unpack to."""
    for name in ("imagenet-a", "imagenetv2-top-images-format-val", "imagenet"):
        shards_at(tmp_path / name)
    assert find_shards(tmp_path, "a") == tmp_path / "imagenet-a"
    assert find_shards(tmp_path, "real") == tmp_path / "imagenet", "the same images, other labels"
    assert found_suites(tmp_path) == ["a", "imagenet", "real", "v2-top-images"]
    assert suites_called("imagenet-a") == suites_called("a") == ("a",)
    assert suites_called("imagenet-c") == ("c",)
    assert suites_called("v2") == ("v2-matched-frequency", "v2-threshold-0.7", "v2-top-images")
    assert suites_called("mine") == ()


@pytest.mark.parametrize("folder", ["c/fog/3", "imagenet-c/weather/fog/3", "c/fog/severity_3"])
def test_parts_are_found_where_archives_put_them(folder: str, tmp_path: Path) -> None:
    shards_at(tmp_path / folder)
    (tmp_path / folder).with_name("4").mkdir()  # half unpacked: no index
    root = tmp_path / folder.partition("/")[0]
    assert found_suites(tmp_path) == ["c"]
    assert find_shards(tmp_path, "c") == root
    assert find_parts(root, load_suite("c")) == [("fog/3", tmp_path / folder)]
    assert "c-extra" not in found_suites(tmp_path)
    shards_at(root / "spatter/1")
    assert found_suites(tmp_path) == ["c", "c-extra"]


def test_parts_of_any_name(tmp_path: Path) -> None:
    for name in ("size", "background"):
        shards_at(tmp_path / "imagenet-e" / name)
    suite = load_suite("imagenet-e")
    assert [part.name for part in find_parts(tmp_path / "imagenet-e", suite)] == ["background", "size"]
    assert wanted_parts(suite) == []
    assert len(wanted_parts(load_suite("c"))) == 75
    assert wanted_parts(load_suite("imagenet-d")) == ["background", "texture", "material"]


def test_a_suite_made_on_the_fly_has_no_folder(tmp_path: Path) -> None:
    shards_at(tmp_path / "c-on-the-fly")
    assert "c-on-the-fly" not in found_suites(tmp_path)


@pytest.mark.parametrize(
    "id",
    [
        *(
            "imagenet",
            "real",
            "v2-matched-frequency",
            "v2-threshold-0.7",
            "v2-top-images",
            "a",
            "r",
            "sketch",
        ),
        *("stylized", "c", "c-extra", "c-bar", "3dcc", "laion-c", "objectnet", "imagenet-d", "imagenet-e"),
        "cue-conflict",
    ],
)
def test_every_published_set_says_where_it_comes_from(id: str) -> None:
    suite = load_suite(id)
    assert suite.is_imagenet
    assert suite.get
    assert "shards make" in suite.make
    assert re.search(r"arXiv:\d{4}\.\d{4}|objectnet\.dev|ICML 2025", suite.source)


def test_corruptions_are_those_of_the_papers() -> None:
    from engine.metrics.mce import CORRUPTIONS, EXTRA, GROUPS

    assert load_suite("c").parts == GROUPS
    assert load_suite("c").kinds == load_suite("c-on-the-fly").kinds == CORRUPTIONS
    assert load_suite("c-extra").kinds == EXTRA
    assert [len(load_suite(id).kinds) for id in ("c-bar", "3dcc", "laion-c")] == [10, 12, 6]
    never_resized = ("c", "c-extra", "c-bar", "3dcc", "stylized")
    assert {(load_suite(id).resize, load_suite(id).image_size) for id in never_resized} == {("none", 224)}
