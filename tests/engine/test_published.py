"""The table of published files: read, checked, and true to the toolkit's own names."""

import json
import re
from pathlib import Path

import pytest
import timm

import models
from engine.cli import Launch, main
from engine.foreign import Stated, as_foreign
from engine.published import PATH, read_published

CPU = Launch(backend="cpu")
TABLE = read_published()


def test_models_exist() -> None:
    assert models
    assert not [file.model for file in TABLE.files if not timm.is_model(file.model)]


def test_names_of_timm_exist() -> None:
    names = [file.file.removeprefix("timm:") for file in TABLE.files if (file.file or "").startswith("timm:")]
    assert names
    assert set(names) <= set(timm.list_pretrained())


@pytest.mark.parametrize("file", TABLE.files, ids=lambda file: file.name)
def test_words_are_accepted(file: object) -> None:
    """`eval FILE --model MODEL` with the words of the table; a tensor stands for the file."""
    found = as_foreign({}, file.model, Stated(num_classes=1000, words=file.words), source="w")
    if "adversarial" in file.name and file.paper == "bai2021":
        assert found.recipe.model.mean == (0.5, 0.5, 0.5)
    if file.words:
        assert found.recipe.data.interpolation == ("bilinear" if file.paper == "bai2021" else "bicubic")


def test_every_robust_resnet_and_every_number() -> None:
    by_paper = {paper: [file for file in TABLE.files if file.paper == paper] for paper in TABLE.papers}
    assert {paper: len(files) for paper, files in by_paper.items()} == {
        "bai2021": 14,
        "wang2023": 4,
        "xu2022": 4,
        "deit": 1,
    }
    # Sums that a slip in any number would change.
    sums = {m: sum(file.numbers.get(m, 0) for file in TABLE.files) for m in TABLE.measures}
    assert sums["clean"] == pytest.approx(1689.994)
    assert sums["autoattack_linf4"] == pytest.approx(97.42)
    assert sums["pgd5_linf4"] == pytest.approx(273.97)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("paper: deit,", "paper: ditto,", "DeiT-S official has paper 'ditto'; known are bai2021"),
        ("clean: 79.854", "clean: 798.54", r"has \{'clean': 798.54\}; numbers are percent"),
        ("missing: [pgd5_linf4]", "missing: [pgd6]", "has number 'pgd6'; known are clean"),
        ("name: Res50-Best", "name: Res50-Ori", "Res50-Ori is there twice"),
        ("norm: ghost", "norms: ghost", "norm"),
        (
            "recipe: recipes/bai2021/res50_ori.yaml",
            "recipe: recipes/none.yaml",
            "names recipe recipes/none.yaml, which is no file",
        ),
        ("files:", "filez:", "is not the table of published files"),
        ("files:", "files: [", "is not the table of published files"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = PATH.read_text()
    assert old in text
    (tmp_path / "published.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=says) as caught:
        read_published(tmp_path / "published.yaml")
    assert "\n" not in str(caught.value)


def test_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["list", "models", "--published", "Res50*", "--json", str(tmp_path / "a.json")]
    assert main(words, CPU, program="p") == 0
    out, _ = capfd.readouterr()
    assert re.search(r"^Res50-Ori +bai2021 +resnet50 +res50_ori\.pth ", out, re.M)
    assert "clean 66.77, pgd100_linf4 32.26, autoattack_linf4 26.41, pgd5_linf4 not known" in out
    assert re.search(r"^# imagenet-c-error: mean error", out, re.M)
    rows = json.loads((tmp_path / "a.json").read_text())["published"]
    assert [row["name"] for row in rows][:2] == ["Res50-Ori", "Res50-Align"]
    assert rows[0]["numbers"]["imagenet-c-error"] == 57.9
    assert main(["list", "suites", "--published"], CPU, program="p") == 2
    assert "--published is for `list models`" in capfd.readouterr().err
