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
import torch
from PIL import Image

from data import journal, shards
from data.adain import StyleTransfer
from data.index import INDEX_FILE, load_index
from data.suite import list_suites
from data.suite_folders import found_suites
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
    assert left.name == ".b2.partial"
    code, out, _ = run(*words)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["reusing", "packed", "packed"]
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


def test_a_tree_of_corruptions_and_severities(tmp_path: Path, run: Run) -> None:
    """ImageNet-C: each CORRUPTION/SEVERITY is a folder of shards, and keys pair with those of val."""
    write_folder(tmp_path / "sets" / "val", num_classes=4)
    for severity, name in enumerate(("noise", "noise", "blur"), 1):
        write_folder(tmp_path / "sets" / "c" / name / str(severity), seed=severity, num_classes=4)
    code, _, err = run("shards", "make", tmp_path / "sets" / "c", tmp_path / "s" / "c", "--each")
    assert code == 2
    assert re.search(r"expected .*c/NAME/CLASS/IMAGE; --depth 2 finds some", err)
    assert run("shards", "make", tmp_path / "sets", tmp_path / "all", "--each")[0] == 0
    for first in ("packed", "reusing"):
        words = ("--each", "--depth", "2", "--json", tmp_path / "r.json")
        code, out, err = run("shards", "make", tmp_path / "sets" / "c", tmp_path / "s" / "c", *words)
        assert (code, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == [first] * 3
    facts = json.loads((tmp_path / "r.json").read_text())["folders"]
    assert {name: (info["dataset"], info["split"]) for name, info in facts.items()} == {
        "blur/3": ("blur/3", "blur-3"),
        "noise/1": ("noise/1", "noise-1"),
        "noise/2": ("noise/2", "noise-2"),
    }
    keys = [
        {index.name(key) for key in range(index.num_samples)}
        for index in map(load_index, (tmp_path / "all" / "val", tmp_path / "s" / "c" / "noise" / "2"))
    ]
    assert keys[0] == keys[1]
    deep = tmp_path / "deep"
    assert run("shards", "make", tmp_path / "sets", deep, "--each", "--depth", "3")[0] == 0
    found = sorted(path.parent.relative_to(deep).as_posix() for path in deep.rglob(INDEX_FILE))
    assert found == ["c/blur/3", "c/noise/1", "c/noise/2", "val"]


def test_a_subset_of_classes_takes_the_labels_of_the_whole(tmp_path: Path, run: Run) -> None:
    write_folder(tmp_path / "val", num_classes=4)
    assert run("shards", "make", tmp_path / "val", tmp_path / "s" / "val")[0] == 0
    few = write_folder(tmp_path / "few", num_classes=4)
    shutil.rmtree(few / "class1")
    (tmp_path / "list.txt").write_text("".join(f"class{n}\n" for n in range(4)))
    for given in (tmp_path / "s" / "val", tmp_path / "list.txt"):
        target = tmp_path / f"s-{given.name}"
        code, out, err = run("shards", "make", few, target, "--classes", given)
        assert code == 0
        assert err == f"{few}: images of 3 of 4 classes\n"
        assert re.search(r"^per class +4 images, 1 classes have none$", out, re.M)
        index = load_index(target)
        assert set(index.labels().tolist()) == {0, 2, 3}
        assert index.classes == load_index(tmp_path / "s" / "val").classes
    (tmp_path / "each").mkdir()
    few.rename(tmp_path / "each" / "few")
    words = ("--each", "--classes", tmp_path / "list.txt")
    for first in ("packed", "reusing"):
        assert run("shards", "make", tmp_path / "each", tmp_path / "e", *words)[1].startswith(first)
    (tmp_path / "list.txt").write_text("class0\nclass2\n")
    code, _, err = run("shards", "make", tmp_path / "each" / "few", tmp_path / "x", *words[1:])
    assert code == 2
    assert re.search(r"few has 1 folders that are not in the class list: class3; move them away", err)


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    """A real one, to the process that works: whole shards stay, and the same command goes on."""
    write_folder(tmp_path / "many", num_classes=10)
    program = """
import os, signal, sys
from data import shards
from engine.cli import Launch, main
real, count = shards.to_row, 0
def interrupted(*args, **named):
    global count
    count += 1
    if count == 25:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args, **named)
shards.to_row = interrupted
sys.exit(main(sys.argv[1:], Launch(backend="cpu"), program="p"))
"""
    words = ["shards", "make", str(tmp_path / "many"), str(tmp_path / "s"), "--samples-per-shard", "10"]
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == (
        "interrupted: 2 of 4 shards are whole and stay in .s.partial; the same command goes on from there\n"
    )
    command[2] = program.replace("count == 25", "False")
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "going on: 2 of 4 shards are there already\n"
    assert load_index(tmp_path / "s").num_samples == 40


def test_verify_says_what_it_read(sets: Path, tmp_path: Path, run: Run) -> None:
    run("shards", "make", sets / "a", tmp_path / "s")
    _, out, _ = run("shards", "verify", tmp_path / "s")
    assert out == f"{tmp_path / 's'}: 12 samples in 1 shards, read and decoded 12 of them, 0 problems\n"
    _, out, _ = run("shards", "verify", tmp_path / "s", "--quick", "--json", tmp_path / "r.json")
    assert out == f"{tmp_path / 's'}: 12 samples in 1 shards, read 12 of them, 0 problems\n"
    assert json.loads((tmp_path / "r.json").read_text()) == {"exit_code": 0, "problems": [], "num_read": 12}
    (tmp_path / "s" / "a-000000.tar").unlink()
    code, out, _ = run("shards", "verify", tmp_path / "s", "--quick")
    assert code == 2
    assert out.splitlines()[0] == "problem: shard a-000000.tar: missing"
    assert "read 0 of them, 1 problems" in out


def test_info_describes_the_images(sets: Path, tmp_path: Path, run: Run) -> None:
    run("shards", "make", sets / "a", tmp_path / "s")
    code, out, _ = run("shards", "info", tmp_path / "s", "--json", tmp_path / "r.json")
    assert code == 0
    for line in (r"per class +4 images", r"width +8 px", r"formats +12 PNG", r"flags +none"):
        assert re.search(rf"^{line}$", out, re.M), out
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["images_per_class"] == {"min": 4, "median": 4.0, "max": 4}
    assert facts["height"] == {"min": 8, "median": 8.0, "max": 8}


def test_index_of_hub_shards(sets: Path, tmp_path: Path, run: Run) -> None:
    run("shards", "make", sets / "a", tmp_path / "hub")
    for path in (tmp_path / "hub").iterdir():
        if path.suffix != ".tar":
            path.unlink()
    (tmp_path / "list.txt").write_text("x\ny\nz\n")
    words = ("--classes", tmp_path / "list.txt", "--split", "val")
    code, out, err = run("shards", "index", tmp_path / "hub", tmp_path / "i", *words)
    assert (code, err) == (0, "")
    assert re.search(r"^split +val$", out, re.M)
    assert load_index(tmp_path / "i").classes == ("x", "y", "z")
    assert len(list((tmp_path / "hub").iterdir())) == 1


def test_stylize_in_both_ways(sets: Path, tmp_path: Path, run: Run) -> None:
    run("shards", "make", sets / "a", tmp_path / "a")
    code, out, err = run("shards", "stylize", tmp_path / "a", tmp_path / "t", "--textures", "3")
    assert (code, err) == (0, "")
    assert re.search(r"^dataset +a, bands matched to 3 generated textures \(no AdaIN\), seed 0$", out, re.M)
    torch.manual_seed(0)
    network = StyleTransfer()
    (tmp_path / "w").mkdir()
    torch.save(network.encoder.state_dict(), tmp_path / "w" / "vgg_normalised.pth")
    torch.save(network.decoder.state_dict(), tmp_path / "w" / "decoder.pth")
    write_folder(tmp_path / "paintings", num_classes=1)
    words = ("--paintings", tmp_path / "paintings", "--weights", tmp_path / "w", "--size", "16")
    code, _, err = run("shards", "stylize", tmp_path / "a", tmp_path / "s", *words)
    assert code == 2
    assert "20 paintings in a row are no images of at least 16x16" in err
    for number in range(4):
        Image.new("RGB", (30, 20), (200, 30, 60 * number)).save(tmp_path / f"paintings/large{number}.png")
    code, out, err = run("shards", "stylize", tmp_path / "a", tmp_path / "s", *words)
    assert (code, err) == (0, "")
    assert re.search(r"^dataset +a, AdaIN in the styles of 8 paintings, seed 0$", out, re.M)
    hashes = {load_index(tmp_path / name).description.key_hash for name in "ast"}
    assert len(hashes) == 1, "all have the same keys"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("make {a} {new} --depth 2", "--depth 2 says how deep --each looks; add --each, or drop it"),
        ("make {sets} {new} --each --depth 0", "--depth 0 must be at least 1"),
        ("info {a} --classes x", "--classes is a flag of shards make and index; drop it"),
        ("make {a} {new} --classes {new}", "no class list .*; give a text file with one class a line"),
        ("make {a} {new} --quick", "--quick is a flag of shards verify; drop it"),
        ("make {a} {new} --textures 2", "--textures is a flag of shards stylize; drop it"),
        ("make {a} {new} --allow-no-eof", "--allow-no-eof is a flag of shards index; drop it"),
        ("stylize {a} {new}", "needs --paintings DIR and --weights DIR .* or --textures N"),
        ("stylize {a} {new} --textures 0", "--textures 0 must be at least 1"),
        ("stylize {a} {new} --textures 2 --paintings x", "--textures needs no --paintings"),
        ("stylize {a} {new} --textures 2", "no index.json in"),
        ("stylize {a} {new} --paintings {sets} --weights {sets}", "no vgg_normalised.pth in"),
        ("index {a} {new} {new}", "shards index takes DST; 3 paths were given"),
    ],
)
def test_flags_that_do_not_fit(sets: Path, tmp_path: Path, run: Run, words: str, says: str) -> None:
    before = content(tmp_path)
    filled = words.format(a=sets / "a", sets=sets, new=tmp_path / "new")
    code, out, err = run("shards", *filled.split())
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert re.search(says, err), err
    assert content(tmp_path) == before


def test_few_images_are_packed_without_helper_processes(
    sets: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take two seconds to start; where there is more to do than that, they come."""
    asked: list[int] = []
    real = journal.shard_workers
    monkeypatch.setattr(journal, "shard_workers", lambda n: asked.append(n) or real(0))
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
