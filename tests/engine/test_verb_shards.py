"""`shards make --each` and `shards digits`: every folder whole or not at all, in as few commands as possible."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import shards
from data.index import INDEX_FILE, load_index
from data.suite import found_suites, list_suites
from engine.cli import Launch, main

ROOT = Path(__file__).parents[2]
CPU = Launch(backend="cpu")
NAMES = ["a", "b2", "b10"]  # in natural order
Run = Callable[..., tuple[int, str, str]]


def write_folder(folder: Path, *, seed: int = 0, num_classes: int = 3) -> Path:
    for label in range(num_classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng([seed, label, number]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            (folder / f"class{label}" / f"{number}.png").write_bytes(file.getvalue())
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Three image folders side by side."""
    for seed, name in enumerate(NAMES):
        write_folder(tmp_path / "sets" / name, seed=seed)
    return tmp_path / "sets"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """run(*words) -> (exit code, stdout, stderr) of one verb in this process."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words], CPU, program="launch_gpu.py")
        return code, *capfd.readouterr()

    return call


def content(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_folder_becomes_the_shards_that_make_gives_alone(sets: Path, tmp_path: Path, run: Run) -> None:
    result = tmp_path / "result.json"
    code, out, err = run("shards", "make", sets, tmp_path / "s", "--each", "--json", result)
    assert (code, err) == (0, "")
    assert re.findall(r"^packed +(\S+): 12 images, 3 classes, shards: 1$", out, re.M) == [
        str(tmp_path / "s" / name) for name in NAMES
    ]
    for name in NAMES:
        assert run("shards", "make", sets / name, tmp_path / "alone" / name, "--workers", "0")[0] == 0
    assert content(tmp_path / "s") == content(tmp_path / "alone")
    facts = json.loads(result.read_text())
    assert (list(facts["folders"]), facts["reused"], facts["passed_over"]) == (NAMES, [], [])
    assert len({info["dataset_id"] for info in facts["folders"].values()}) == 3
    assert [info["split"] for info in facts["folders"].values()] == NAMES


def test_what_is_packed_is_reused(sets: Path, tmp_path: Path, run: Run) -> None:
    run("shards", "make", sets / "b2", tmp_path / "s" / "b2")
    before = (tmp_path / "s" / "b2" / INDEX_FILE).stat().st_mtime_ns
    code, out, _ = run("shards", "make", sets, tmp_path / "s", "--each", "--json", tmp_path / "r.json")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["packed", "reusing", "packed"]
    assert (tmp_path / "s" / "b2" / INDEX_FILE).stat().st_mtime_ns == before
    assert json.loads((tmp_path / "r.json").read_text())["reused"] == ["b2"]


@pytest.mark.parametrize("moment", ["before the index", "before the rename"])
def test_a_killed_call_goes_on(sets: Path, tmp_path: Path, run: Run, moment: str) -> None:
    """kill -9 in the second folder: what it left is not taken for shards, and the next call ends as one alone."""
    target = "data.shards.save_dataset" if moment == "before the index" else "pathlib.Path.rename"
    program = f"""
import os, signal, sys
from unittest import mock
from engine.cli import Launch, main
calls = []
real = __import__("importlib").import_module("pkgutil").resolve_name({target!r})
def fatal(*args, **named):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **named)
with mock.patch({target!r}, fatal):
    main(sys.argv[1:], Launch(backend="cpu"), program="p")
"""
    words = ["shards", "make", str(sets), str(tmp_path / "s"), "--each"]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert found_suites(tmp_path / "s") == ["a"]
    (left,) = (path for path in (tmp_path / "s").iterdir() if path.name != "a")
    assert left.name.startswith(".b2.partial-")
    code, out, _ = run(*words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["reusing", "packed", "packed"]
    shutil.rmtree(left)
    run("shards", "make", sets, tmp_path / "whole", "--each")
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_a_bad_image_costs_its_own_folder_alone(sets: Path, tmp_path: Path, run: Run) -> None:
    bad = sets / "b2" / "class1" / "0.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:-30])
    code, out, err = run("shards", "make", sets, tmp_path / "s", "--each")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "b2/class1/0.png" in err
    assert [line.split()[0] for line in out.splitlines()] == ["packed"]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["a"]
    bad.write_bytes(good)
    assert run("shards", "make", sets, tmp_path / "s", "--each")[0] == 0
    assert sorted(found_suites(tmp_path / "s")) == sorted(NAMES)


def test_other_things_beside_the_image_folders_are_named(sets: Path, run: Run) -> None:
    """Archives, sets of another depth, hidden folders; DST itself may lie there as well."""
    (sets / "a.tar").write_bytes(b"x")
    write_folder(sets / "imagenet-c" / "noise" / "1")
    (sets / "empty").mkdir()
    (sets / ".cache" / "x").mkdir(parents=True)
    (sets / ".cache" / "x" / "y").write_text("z")
    for first in ("packed", "reusing"):
        code, out, err = run("shards", "make", sets, sets / "shards", "--each")
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == ["passing"] * 3 + [first] * 3
        assert re.findall(r"passing over (\S+):", out) == [
            str(sets / n) for n in ("a.tar", "empty", "imagenet-c")
        ]
    code, out, _ = run("shards", "make", sets, sets / "more" / "shards", "--each")
    assert code == 0
    assert f"passing over {sets / 'shards'}:" in out, "folders of shards are no image folders"


def test_shards_of_other_images_are_not_taken_for_these(sets: Path, tmp_path: Path, run: Run) -> None:
    assert run("shards", "make", sets, tmp_path / "s", "--each")[0] == 0
    before = content(tmp_path / "s")
    says = r"error: .*s/b2 holds other images \(12\) than .*sets/b2 \(1[123]\); remove it .* or choose another DST"

    def refused() -> None:
        code, _, err = run("shards", "make", sets, tmp_path / "s", "--each")
        assert code == 2
        assert re.search(says, err), err
        assert content(tmp_path / "s") == before

    image = sets / "b2" / "class0" / "0.png"
    original = image.read_bytes()
    image.rename(image.with_name("9.png"))
    refused()
    image.write_bytes(original)
    refused()
    image.with_name("9.png").unlink()
    image.write_bytes(original + b"\0")
    refused()
    image.write_bytes(original)
    (sets / "b2" / "class2").rename(sets / "b2" / "class3")
    refused()


def test_bad_input_of_each(sets: Path, tmp_path: Path, run: Run) -> None:
    def refused(*words: str | Path, says: str) -> None:
        before = content(tmp_path)
        code, out, err = run("shards", *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert re.search(says, err), err
        assert content(tmp_path) == before

    new = tmp_path / "new"
    refused("make", sets, "--each", says="takes SRC DST; 1 paths were given")
    refused(
        "make", tmp_path / "nowhere", new, "--each", says="no folder .*nowhere; give the folder that holds"
    )
    refused("make", sets / "a", new, "--each", says=r"sets/a is one image folder, .*; leave out --each")
    refused("make", tmp_path, new, "--each", says=r"has no image folders; expected .*/NAME/CLASS/IMAGE")
    refused("make", sets, sets, "--each", says="is SRC and DST; the shards need a folder of their own")
    refused("make", sets, new, "--each", "--split", "val", says="--split and --each: .*; drop one of the two")
    refused("info", sets, "--each", says="--each is a flag of shards make; drop it, info takes one folder")
    refused("make", sets, new, "--each", "--workers", "-1", says="--workers -1: give 0 .* or more")
    (tmp_path / "file").write_text("x")
    refused(
        "make", sets, tmp_path / "file", "--each", says="file is a file; give a folder, or the name of a new"
    )
    (new / "a").mkdir(parents=True)
    (new / "a" / "mine.txt").write_text("x")
    refused("make", sets, new, "--each", says="new/a is not empty; choose another folder, or remove this one")
    (new / "a" / INDEX_FILE).write_text("{}")
    refused("make", sets, new, "--each", says=r"new/a/index.json: .*; write it again with")
    shutil.rmtree(new / "a")
    (new / "a").write_text("x")
    refused("make", sets, new, "--each", says="new/a is a file; give a folder that does not exist yet")


def test_few_images_are_packed_without_helper_processes(
    sets: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take two seconds to start; where there is more to do than that, they come."""
    asked: list[int] = []
    real = shards.map_shards
    monkeypatch.setattr(shards, "map_shards", lambda f, tasks, n: asked.append(n) or real(f, tasks, 0))
    words = ("shards", "make", sets / "a")
    run(*words, tmp_path / "1", "--samples-per-shard", "4")
    run(*words, tmp_path / "2", "--samples-per-shard", "4", "--workers", "3")
    monkeypatch.setattr(shards, "_WORTH_WORKERS", 100)
    run(*words, tmp_path / "3", "--samples-per-shard", "4")
    run(*words, tmp_path / "4")
    assert asked == [0, 3, 2, 0]
    assert len({load_index(tmp_path / str(n)).dataset_id for n in (1, 2, 3)}) == 1


def test_digits_and_their_shifts_are_two_commands(tmp_path: Path, run: Run) -> None:
    code, out, err = run("shards", "digits", tmp_path / "d", "--size", "8")
    assert (code, err) == (0, "")
    assert "8 px: train, val, digits-noise, digits-blur" in out
    assert run("shards", "make", tmp_path / "d", tmp_path / "s", "--each")[0] == 0
    shifted = [suite.id for suite in list_suites() if suite.id.startswith("digits-")]
    assert found_suites(tmp_path / "s") == shifted
    val = load_index(tmp_path / "s" / "val")
    ids = {val.dataset_id}
    for name in shifted:
        index = load_index(tmp_path / "s" / name)
        assert [index.name(key) for key in range(359)] == [val.name(key) for key in range(359)], "same order"
        assert np.array_equal(index.labels(), val.labels())
        assert index.classes == val.classes
        ids.add(index.dataset_id)
    assert len(ids) == 1 + len(shifted)


def test_info_names_the_suite(sets: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits-blur", "mine"):
        run("shards", "make", sets / "a", tmp_path / name)
    code, out, _ = run("shards", "info", tmp_path / "digits-blur", "--json", tmp_path / "r.json")
    assert code == 0
    assert re.search(r"^suite +Digits, blur: Gaussian blur, sigma 3 px", out, re.M)
    assert json.loads((tmp_path / "r.json").read_text())["suite"] == "digits-blur"
    assert "suite" not in run("shards", "info", tmp_path / "mine")[1]
    monkeypatch.chdir(tmp_path / "digits-blur")
    assert "Digits, blur" in run("shards", "info", ".")[1]
    assert os.getcwd() == str(tmp_path / "digits-blur")
