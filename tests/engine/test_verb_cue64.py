"""`shards make cue64` as a user calls it: nine folders, reused the second time; every mistake one line."""

import json
from pathlib import Path

import pytest

from data.cue64 import FOLDERS
from engine.cli import Launch, main

CPU = Launch(backend="cpu")
FEW = ["--num-train", "40", "--num-val", "20", "--num-classes", "4", "--workers", "0"]


def call(*words: str) -> int:
    return main(["shards", "make", "cue64", *words], CPU, program="launch_gpu.py")


def test_nine_folders_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = tmp_path / "facts.json"
    assert call(str(tmp_path / "s"), *FEW) == 0
    assert capsys.readouterr().out.count("made ") == len(FOLDERS)
    assert call(str(tmp_path / "s"), *FEW, "--json", str(facts)) == 0
    assert capsys.readouterr().out.count("reusing ") == len(FOLDERS)
    found = json.loads(facts.read_text())
    assert found["reused"] == list(FOLDERS) == list(found["folders"])
    assert found["folders"]["train"]["num_samples"] == 40
    assert {path.name for path in (tmp_path / "s").iterdir()} == set(FOLDERS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DST", "--correlation", "1.5"], "correlation 1.5 is a probability"),
        (["DST", "--num-train", "0"], "num_train 0 is below"),
        (["DST", "--num-val", "-3"], "num_val -3 is below"),
        (["DST", "--num-classes", "99"], "num_classes 99"),
        (["DST", "--samples-per-shard", "0"], "samples_per_shard 0"),
        (["DST", "--workers", "-1"], "--workers -1"),
        (["DST", "--each"], "--each and --split are for image folders"),
        (["DST", "--split", "val"], "--each and --split are for image folders"),
        (["FILE"], "is a file"),
        ([], "takes SRC DST; 1 paths"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "FILE").write_text("x")
    places = [str(tmp_path / word) if word in ("DST", "FILE") else word for word in words]
    assert call(*places) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_its_flags_are_for_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["shards", "digits", str(tmp_path / "d"), "--num-train", "10"], CPU, program="launch_gpu.py")
        == 2
    )
    assert "--num-train is a flag of `shards make cue64 DST`" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
