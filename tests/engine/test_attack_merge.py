"""`attack merge` and `attack verify`: parts become the whole, and stored images are what the ledger says of them."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.adversarial_store import stored_evaluation, stored_names
from engine.cli import Launch, main
from engine.ledger import read_ledger
from robust import versions
from tests.engine.autoattack_cases import short

CPU = Launch(backend="cpu")
NAME = "aa-short_linf10"


def call(*words: str | Path) -> int:
    return main([str(word) for word in words], CPU, program="p")


def attack(run: Path, output: Path, *words: str) -> None:
    fixed = ["--attack", "autoattack", "--version", "short", "--batch-size", "8", "--save-images", "--quiet"]
    chosen = ["--eps", "10/255", "--num-images", "32"] if "--eps" not in words else []
    assert call("attack", run, *fixed, *chosen, *words, "--output", output) == 0


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"results/{NAME}.json").read_text())
    return found


@pytest.fixture(scope="module")
def parts(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the evaluation as a whole, in two parts, and one of another radius."""
    root = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(versions.VERSIONS, "short", short)  # type: ignore[arg-type]
        attack(made, root / "whole")
        attack(made, root / "one", "--part", "1/2")
        attack(made, root / "two", "--part", "2/2")
        attack(made, root / "other", "--eps", "9/255", "--num-images", "32", "--part", "2/2")
    return root


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.VERSIONS, "short", short)  # type: ignore[arg-type]


def line(capfd: pytest.CaptureFixture[str]) -> str:
    err = capfd.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    return err


def test_parts_become_the_whole(parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not (parts / "one/results").exists(), "a part is no result"
    capfd.readouterr()
    assert call("attack", "merge", parts / "two", parts / "one", "--output", tmp_path / "out") == 0
    whole, joined = result_of(parts / "whole"), result_of(tmp_path / "out")
    assert joined == whole
    assert NAME in capfd.readouterr().out
    rows = [
        [
            row._replace(margin=round(row.margin, 4))
            for row in read_ledger(folder / "ledger").rows(whole["evaluation"])
        ]
        for folder in (parts / "whole", tmp_path / "out")
    ]
    assert rows[0] == rows[1]
    stored = [
        sorted((folder / "adversarial").rglob("*.safetensors"))
        for folder in (parts / "whole", tmp_path / "out")
    ]
    assert len(stored[0]) == 4
    for one, other in zip(*stored, strict=True):
        assert stored_names(one) == stored_names(other)
        assert np.array_equal(load_file(one)["adversarial"], load_file(other)["adversarial"])
    capfd.readouterr()
    assert call("attack", "verify", tmp_path / "out") == 0
    assert "as the ledger says" in capfd.readouterr().out


def test_parts_may_overlap_where_they_agree(parts: Path, tmp_path: Path) -> None:
    assert call("attack", "merge", parts / "one", parts / "whole", "--output", tmp_path / "out") == 0
    assert result_of(tmp_path / "out") == result_of(parts / "whole")


def test_parts_that_disagree_are_refused(
    parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "one", tmp_path / "bad")
    with sqlite3.connect(tmp_path / "bad/ledger/rank-0.sqlite") as db:
        db.execute("UPDATE verdict SET correct = 1 - correct WHERE component = 'clean'")
    db.close()
    capfd.readouterr()
    assert call("attack", "merge", parts / "whole", tmp_path / "bad", "--output", tmp_path / "out") == 2
    assert "has two verdicts" in line(capfd)


def test_what_is_missing_is_said_and_can_be_done(
    made: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attack(made, tmp_path / "third", "--part", "1/4")
    capfd.readouterr()
    assert call("attack", "merge", parts / "two", tmp_path / "third", "--output", tmp_path / "out") == 2
    said = line(capfd)
    assert "16 of 32 images" in said or "24 of 32 images" in said
    assert "does the rest" in said
    attack(made, tmp_path / "out")
    again, whole = result_of(tmp_path / "out"), result_of(parts / "whole")
    assert {**again, "flags": 0} == {**whole, "flags": 0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{one} {other}", "are not parts of one evaluation: "),
        ("{one}", "parts to be joined are two folders or more"),
        ("{one} {one}", "is given twice"),
        ("{one} {made}", "has no ledger; give folders that `attack` has written"),
        ("{one} /none", "/none has no ledger"),
    ],
)
def test_what_is_no_part_is_refused(
    words: str, says: str, made: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    places = words.format(one=parts / "one", other=parts / "other", made=made).split()
    assert call("attack", "merge", *places, "--output", tmp_path / "out") == 2
    assert says in line(capfd)
    assert not (tmp_path / "out").exists()


def test_a_full_output_is_left_alone(parts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert call("attack", "merge", parts / "one", parts / "two", "--output", parts / "whole") == 2
    assert "is not empty" in line(capfd)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_cannot_be(
    text: str, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    words = ["attack", made, "--attack", "autoattack", "--eps", "4/255", "--part", text]
    assert call(*words, "--output", tmp_path / "out") == 2
    assert f"--part is '{text}', but must be K/N" in line(capfd)


# ---- verify


def test_a_changed_image_is_found(parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(parts / "whole", tmp_path / "run")
    path = sorted((tmp_path / "run/adversarial").rglob("block-*.safetensors"))[0]
    image = load_file(path)["adversarial"]
    names = stored_names(path)
    image[0, 0, 3, 3] = 1.0 - image[0, 0, 3, 3].round()
    image[1] = image[1] + 2.0
    facts = {"evaluation": stored_evaluation(path), "names": json.dumps(names)}
    save_file({"adversarial": image}, path, facts)
    capfd.readouterr()
    assert call("attack", "verify", tmp_path / "run", "--batch-size", "3") == 0
    out = capfd.readouterr().out
    assert "2 outside the ball, 1 outside [0, 1]" in out
    found = json.loads((path.parent / "verified.json").read_text())
    assert found["outside_ball"] == names[:2]
    assert found["outside_box"] == [names[1]]
    assert found["num_images"] == 32
    assert found["differs"]


def test_a_run_that_has_moved_is_named(
    made: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "whole", tmp_path / "out")
    subject = json.loads((tmp_path / "out/subject.json").read_text())
    (tmp_path / "out/subject.json").write_text(json.dumps(subject | {"run": "/gone"}))
    capfd.readouterr()
    assert call("attack", "verify", tmp_path / "out") == 2
    assert "/gone is no run folder" in line(capfd)
    assert call("attack", "verify", tmp_path / "out", "--run", made) == 0
    (tmp_path / "out/subject.json").unlink()
    capfd.readouterr()
    assert call("attack", "verify", tmp_path / "out") == 2
    assert "has no subject.json" in line(capfd)


def test_another_model_is_refused(
    made: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(parts / "whole", tmp_path / "out")
    with sqlite3.connect(tmp_path / "out/ledger/rank-0.sqlite") as db:
        ((text,),) = db.execute("SELECT description FROM evaluation").fetchall()
        about = json.loads(text) | {"weights_sha256": "0" * 64}
        db.execute("UPDATE evaluation SET description = ?", (json.dumps(about, sort_keys=True),))
    db.close()
    capfd.readouterr()
    assert call("attack", "verify", tmp_path / "out") == 2
    said = line(capfd)
    assert "its weights is 0000000000000000" in said
    assert "--run" in said


def test_nothing_stored_is_said(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert call("attack", "verify", made) == 2
    assert "has no stored adversarial images" in line(capfd)


def test_the_report_shows_what_broke_the_images(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "whole", tmp_path / "run")
    assert call("report", tmp_path / "run") == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "is not shown" not in page
    assert "AutoAttack short" in page
    gallery = load_file(tmp_path / f"run/gallery/{NAME}.safetensors")
    change = np.abs(gallery["attacked"] - gallery["image"].astype(np.float32) / 255).max(axis=(1, 2, 3))
    assert change.max() <= 10 / 255 + 1e-6
    assert (change > 0).any()
    assert page.count("data:image/png") >= 3 * len(change)
