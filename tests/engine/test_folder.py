"""The run folder: where things lie, what is refused, what it says about where the run was made."""

import json
import os
from pathlib import Path

import pytest

from bits.environment import open_environment
from engine.folder import RunFolder
from engine.recipe import parse_recipe

TREE: dict[str, object] = {
    "data": {"train": "shards/train", "image_size": 32},
    "model": {"name": "small_cnn"},
    "optim": {"lr": 0.1},
    "run": {"epochs": 1, "batch_size": 8},
}


def test_everything_lies_in_the_folder() -> None:
    folder = RunFolder(Path("runs/a"))
    paths = (folder.recipe, folder.environment, folder.log, folder.checkpoints, folder.results, folder.ledger)
    assert len(set(paths)) == 6
    assert all(path.parent == folder.root for path in paths)


def test_start_and_exit(tmp_path: Path) -> None:
    folder, recipe = RunFolder(tmp_path / "a" / "b"), parse_recipe(TREE)
    folder.check_writable()
    assert not (tmp_path / "a").exists(), "a check makes nothing"
    folder.create()
    folder.create()
    env = open_environment("cpu", world_size=1)
    folder.write_start(recipe, env)
    env.close()
    assert folder.read_recipe() == recipe
    facts = json.loads(folder.environment.read_text())
    assert facts["versions"]["torch"]
    assert (facts["backend"], facts["world_size"], facts["num_devices"]) == ("cpu", 1, 1)
    assert {"python", "git_commit", "device", "precision", "command", "machine"} <= facts.keys()
    folder.write_exit(75)
    assert json.loads((folder.root / "exit.json").read_text()) == {"exit_code": 75}
    folder.write_start(recipe, env)
    assert not (folder.root / "exit.json").exists(), "what an earlier start ended with counts no more"
    assert {p.name for p in folder.root.iterdir()} == {"recipe.yaml", "environment.json"}, "no partial files"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        for action in (RunFolder(path).check_writable, RunFolder(path).create):
            with pytest.raises(ValueError, match=r"output folder .*file is a file; choose another --output"):
                action()
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    with pytest.raises(ValueError, match=r"output folder .*link: .*; choose another --output"):
        RunFolder(tmp_path / "link").create()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"output folder .*new: .* is not writable; choose another --output"):
        RunFolder(tmp_path / "new").check_writable()


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder \(no recipe.yaml in it\); give the folder"):
        RunFolder(tmp_path).read_recipe()
