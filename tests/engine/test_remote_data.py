"""Shards behind a URL, and tars without an index, by the command line: the same run, or one line that says why not."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.index import load_index
from data.shards import make
from engine import training_set
from engine.cli import Launch, main
from engine.ledger import read_ledger
from engine.log import read_log
from engine.recipe import load_recipe
from engine.subject import find_weights
from engine.verdict import weights_hash

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

ROOT = Path(__file__).parents[2]
CPU = Launch(backend="cpu")
RECIPE: dict[str, Any] = {
    "data": {"image_size": 8, "num_workers": 0, "eval_resize": "squash"},
    "model": {"name": "small_cnn", "args": {"width": 4}},
    "optim": {"lr": 2e-3, "warmup_epochs": 1},
    "objective": {"mixup": 0.8},
    "evals": [],
    "run": {"epochs": 2, "batch_size": 10, "report_every": 1, "checkpoint_every": 1, "tensorboard": False},
}
STEPS = 14  # of both epochs of 70 images
Serve = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's real cache, and no pauses between attempts."""
    monkeypatch.setenv("ROBUST_BITS_CACHE", str(tmp_path / "default_cache"))
    monkeypatch.setattr("data.remote._delay", lambda *_: 0.0)


@pytest.fixture(scope="module")
def world(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` in 3 shards, `thin`: the same 70 images in 70 shards, `val` and a suite `dark`; and `run`, trained."""
    root = tmp_path_factory.mktemp("remote_data")
    images = few_digits.parent / "images"
    shutil.copytree(few_digits, root / "train")
    make(images, root / "thin", split="thin", samples_per_shard=1)
    make(images, root / "val", split="val", seed=1, samples_per_shard=30)
    make(images, root / "dark", split="dark", seed=2)
    assert run("train", write(root, root / "train"), "--output", root / "run") == 0
    return root


def write(folder: Path, train: object, **data: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"data": {**RECIPE["data"], "train": str(train), **data}}))
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words], CPU, program="launch_gpu.py")


def weights(folder: Path) -> str:
    return weights_hash(find_weights(folder)[1]["model"])


def starts(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_log(folder / "log.jsonl") if entry["event"] == "start"]


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that ends with exit code 2."""
    capfd.readouterr()
    assert run(*words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ---- training


def test_training_from_a_url_is_training_from_the_folder(world: Path, serve: Serve, tmp_path: Path) -> None:
    server = serve(world)
    recipe, out = write(tmp_path, f"{server.url}/train", num_workers=2), tmp_path / "out"
    assert run("train", recipe, "data.window=all", "--cache", tmp_path / "mine", "--output", out) == 0
    assert weights(out) == weights(world / "run")
    found = load_recipe(out / "recipe.yaml").data
    assert (found.train, found.cache, found.window) == (f"{server.url}/train", str(tmp_path / "mine"), "all")
    assert [(e["shards"], e["window"], e["again"]) for e in starts(out)] == [(3, 3, 0)]
    tars = [request.name for request in server.requests(".tar")]
    assert len(tars) == len(set(tars)) == 3
    assert len(list((tmp_path / "mine/shards").iterdir())) == 3
    assert not (tmp_path / "default_cache").exists()


def test_a_url_is_shuffled_over_windows_and_resumed_exactly(
    world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second epoch, after a stop in the first; the last part reads a local copy."""
    recipe = write(tmp_path, f"{serve(world).url}/thin")
    assert run("train", recipe, "--output", tmp_path / "whole") == 0
    assert "windows of 64 of its 70 shards (quality 0.91" in capfd.readouterr().err
    assert weights(tmp_path / "whole") != weights(world / "run")

    parts = tmp_path / "parts"
    assert run("train", recipe, "run.max_steps=3", "--output", parts) == 0
    kill_at(9, recipe, parts)
    line = refused(
        capfd, "train", recipe, f"data.train={world / 'thin'}", "data.window=10", "--output", parts
    )
    assert re.search(r"windows of 64 of 70 shards, data.window 10 .* give 64 or null", line)
    refused(capfd, "train", recipe, "data.window=all", "--output", parts)
    # The window that was used may be named, and null means it also where null would have meant another one.
    assert run("train", recipe, "data.window=64", "run.max_steps=11", "--output", parts) == 0
    assert run("train", recipe, f"data.train={world / 'thin'}", "--output", parts) == 0
    assert weights(parts) == weights(tmp_path / "whole")
    assert {(entry["window"], entry["shards"]) for entry in starts(parts)} == {(64, 70)}


def kill_at(step: int, recipe: Path, output: Path) -> None:
    words = ["launch_gpu.py", "--cpu", "train", str(recipe), "--output", str(output), "--quiet"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while max(entry["step"] for entry in read_log(output / "log.jsonl")) < step:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_local_run_goes_on_from_a_url_in_its_order(
    world: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_set, "WINDOW_OF_URL", 1)
    out = tmp_path / "out"
    assert run("train", write(tmp_path, world / "train"), "run.max_steps=5", "--output", out) == 0
    assert run("train", write(tmp_path, f"{serve(world).url}/train"), "--output", out) == 0
    assert weights(out) == weights(world / "run")
    assert [entry["window"] for entry in starts(out)] == [3, 3]


def test_a_window_counts_for_a_folder_too(world: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path, world / "train")
    assert run("train", recipe, "data.window=2", "--output", tmp_path / "two") == 0
    assert run("train", recipe, "data.window=99", "--output", tmp_path / "all") == 0
    assert weights(tmp_path / "two") != weights(tmp_path / "all") == weights(world / "run")
    assert load_recipe(recipe, ["data.window=2"]).hash != load_recipe(recipe).hash
    assert load_recipe(recipe, ["data.cache=x"]).hash == load_recipe(recipe).hash


def test_a_window_that_the_cache_cannot_hold(
    world: Path,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sizes = [shard.size for shard in load_index(world / "train").shards]
    monkeypatch.setenv("ROBUST_BITS_CACHE_BYTES", str(max(sizes) * 2))
    recipe = write(tmp_path, f"{serve(world).url}/train")
    line = refused(capfd, "train", recipe, "--output", tmp_path / "out")
    assert re.search(
        r"cache's limit of \d+ bytes cannot hold the \d+ bytes of 3 shards .* lower the window", line
    )
    assert not (tmp_path / "out").exists()
    assert run("train", recipe, "data.window=1", "run.max_steps=2", "--output", tmp_path / "out") == 0


def test_two_ranks_download_each_file_once(
    world: Path, serve: Serve, tmp_path: Path, launch: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    server = serve(world)
    recipe = write(tmp_path, f"{server.url}/train", val=f"{server.url}/val", window="all")
    words = (
        "--cpu",
        "--num-processes",
        "2",
        "train",
        recipe,
        "evals=[{suite: clean}]",
        "objective.mixup=0.0",
        "--output",
        tmp_path / "o",
    )
    done = launch("gpu", *words, "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    asked = [request.name for request in server.requests() if request.name != "index.json"]
    assert len(asked) == len(set(asked)) == 3 * 6, "3 shards of each set, with two arrays each"
    assert len(server.requests("index.json")) == 2 * 2, "each rank looks once which data set lies there today"
    assert len(rows(tmp_path / "o", "clean")) == 70


# ---- evaluation


def rows(folder: Path, result: str) -> list[Any]:
    identity = yaml.safe_load((folder / "results" / f"{result}.json").read_text())["evaluation"]
    return sorted(read_ledger(folder / "ledger").rows(identity))


def test_an_evaluation_from_a_url_has_the_same_ledger(
    world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server, local = serve(world), tmp_path / "local"
    assert run("eval", world / "run", "--suite", "clean,dark", "--data", world, "--output", local) == 0
    for place, suite in (
        (f"{server.url}/val", "clean"),
        (f"{server.url}/", "dark"),
        (server.url, "clean,dark"),
    ):
        out = tmp_path / str(len(server.log))
        words = ("--suite", suite, "--data", place, "--cache", tmp_path / "cache", "--output", out)
        assert run("eval", world / "run", *words) == 0
        for name in suite.split(","):
            assert rows(out, name) == rows(local, name)
            assert len(rows(out, name)) == 70
    words = ("--eps", "8/255", "--steps", "1", "--data", server.url, "--output", tmp_path / "attacked")
    assert run("attack", world / "run", *words, "--cache", tmp_path / "cache") == 0
    tars = [request.name for request in server.requests(".tar")]
    assert len(tars) == len(set(tars)) == 4
    line = refused(capfd, "eval", world / "run", "--suite", "all", "--data", server.url)
    assert "is a URL, whose folders cannot be listed; name the suites" in line
    line = refused(capfd, "eval", world / "run", "--suite", "fog", "--data", server.url)
    assert f"no index.json in {server.url} nor {server.url}/fog" in line


def test_suites_of_a_training_may_be_a_url(world: Path, serve: Serve, tmp_path: Path) -> None:
    """data.suites is joined, and the index opened at the start serves all evaluations."""
    server = serve(world)
    recipe = write(tmp_path, world / "train", val=f"{server.url}/val", suites=f"{server.url}?token=secret")
    words = ("evals=[{suite: clean, every: 1}, {suite: dark, every: 1}]", "--output", tmp_path / "out")
    assert run("train", recipe, *words) == 0
    assert len(rows(tmp_path / "out", "dark")) == 70
    assert len(server.requests("index.json")) == 2


# ---- pipes


def test_pipes_are_run_only_where_the_command_line_allows_it(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = f"pipe:cat {world}/train/{{name}}"
    recipe, out = write(tmp_path, place), tmp_path / "out"
    assert "refused unless allowed (--allow-pipes)" in refused(capfd, "train", recipe, "--output", out)
    assert "data.allow_pipes is not a field" in refused(capfd, "train", recipe, "data.allow_pipes=true")
    assert not out.exists()
    assert run("train", recipe, "data.window=all", "--allow-pipes", "--output", out) == 0
    assert weights(out) == weights(world / "run")
    val = f"pipe:cat {world}/val/{{name}}"
    assert "--allow-pipes" in refused(capfd, "eval", out, "--data", val)
    assert run("eval", out, "--data", val, "--allow-pipes", "--output", tmp_path / "judged") == 0
    line = refused(capfd, "eval", out, "--suite", "clean,dark", "--data", val, "--allow-pipes")
    assert "a command with the files of one set only" in line


# ---- no index


def test_an_index_is_written_when_a_folder_is_first_opened(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "train", tmp_path / "tars", ignore=lambda _, names: unindexed(names))
    recipe, out = write(tmp_path, tmp_path / "tars"), tmp_path / "out"
    assert run("train", recipe, "--output", out) == 0
    said = capfd.readouterr().err
    assert said.count("indexing its 3 tars") == 1
    assert (
        f"data.train {tmp_path}/tars has no index.json: indexing its 3 tars, once, into {tmp_path}/tars"
        in said
    )
    assert weights(out) == weights(world / "run")
    shutil.copytree(world / "dark", tmp_path / "sets/dark", ignore=lambda _, names: unindexed(names))
    assert run("eval", out, "--suite", "dark", "--data", tmp_path / "sets") == 0
    assert "suite dark:" in capfd.readouterr().err

    (tmp_path / "tars/index.json").unlink()
    tar = sorted((tmp_path / "tars").glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[:5000])
    capfd.readouterr()
    assert run("train", recipe, "--output", tmp_path / "new") == 2
    _, error = capfd.readouterr().err.splitlines()
    assert tar.name in error
    assert not (tmp_path / "new").exists()


def unindexed(names: list[str]) -> set[str]:
    return {name for name in names if not name.endswith(".tar")}


STREAMED = ("data.num_classes=10", "data.epoch_images=65", "--no-index")


def test_tars_without_an_index_are_trained_on_in_order(
    world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server, out = serve(world), tmp_path / "out"
    recipe = write(tmp_path, f"{server.url}/train/train-{{000000..000002}}.tar", val=str(world / "val"))
    words = (recipe, *STREAMED, "evals=[{suite: clean}]", "--output", out)
    assert run("train", *words, "run.max_steps=8") == 0
    assert "its 3 tars are read in order, 65 images count as an epoch" in capfd.readouterr().err
    found = load_recipe(out / "recipe.yaml").data
    assert (found.indexed, found.epoch_images) == (False, 65)
    assert "data.indexed, data.epoch_images differ" in refused(
        capfd, "train", recipe, *STREAMED[:1], "--output", out
    )
    assert run("train", *words) == 0
    assert "epoch 1 goes on after 20 images, with its first images once more" in capfd.readouterr().err
    assert [(e["step"], e["window"], e["shards"], e["again"]) for e in starts(out)] == [
        (0, None, 3, 0),
        (8, None, 3, 20),
    ]
    assert read_log(out / "log.jsonl")[-1]["step"] == 12
    assert not server.requests("index.json")
    assert not server.requests("npy")
    assert run("eval", out, "--suite", "dark", "--data", world) == 0


def test_forms_of_a_stream(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder, and a list of files, of the same names: the same run. Without data.val its classes have no names."""
    files = ",".join(str(path) for path in sorted((world / "train").glob("*.tar")))
    for name, train in (("folder", str(world / "train")), ("list", files)):
        assert run("train", write(tmp_path, train), *STREAMED, "--output", tmp_path / name) == 0
    assert weights(tmp_path / "folder") == weights(tmp_path / "list")
    assert run("eval", tmp_path / "list", "--data", world / "val") == 0
    words = ("weights", "export", tmp_path / "list", tmp_path / "x.safetensors")
    assert run(*words) == 0
    moved = write(tmp_path, ",".join(files.split(",")[:2]))
    line = refused(capfd, "train", moved, *STREAMED, "--output", tmp_path / "list")
    assert "was trained on dataset stream-" in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data.epoch_images=70"], r"data.num_classes is null, but without an index"),
        (["data.num_classes=10"], r"data.epoch_images is null, but without an index"),
        (["data.num_classes=10", "data.epoch_images=9"], r"less than run.batch_size 10"),
        ([*STREAMED[:2], "data.repeats=2"], r"data.repeats is 2, but a stream .* has each image once"),
        ([*STREAMED[:2], "data.window=2"], r"data.window is 2, but a stream .* is read in order"),
        ([*STREAMED[:2], "data.train=none.tar"], r"data.train: no file none.tar"),
        ([*STREAMED[:2], "data.train=tests"], r"data.train tests names no tars"),
        ([*STREAMED[:2], "data.train=pipe:cat x.tar"], r"refused unless allowed \(--allow-pipes\)"),
    ],
)
def test_what_a_stream_refuses(
    words: list[str], reason: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, world / "train")
    line = refused(capfd, "train", recipe, *words, "--no-index", "--output", tmp_path / "out")
    assert re.search(reason, line), line
    assert not (tmp_path / "out").exists()


def test_a_field_of_streams_needs_one(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = refused(capfd, "train", write(tmp_path, world / "train"), "data.epoch_images=70")
    assert "the index says how many images an epoch has; drop it, or train without an index" in line


def test_a_bad_image_ends_a_stream(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "train", tmp_path / "tars")
    for path in (tmp_path / "tars").glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(b"IHDR", b"IDHR"))
    capfd.readouterr()
    recipe = write(tmp_path, tmp_path / "tars")
    assert run("train", recipe, *STREAMED, "--quiet", "--output", tmp_path / "out") == 2
    assert "bad sample" in capfd.readouterr().err.splitlines()[-1]
    assert read_log(tmp_path / "out/log.jsonl")[-1]["event"] == "error"


# ---- wrong addresses


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (
            "{url}/nowhere",
            r"HTTP 404 .*run `shards index` where the shards lie, or train without one \(--no-index\)",
        ),
        ("http://127.0.0.1:9/train", r"127\.0\.0\.1:9/train/index\.json: .*(refused|attempts)"),
        (
            "ftp://somewhere/train",
            r"data\.train ftp://somewhere/train: addresses that are read begin with https",
        ),
        ("{url}/train/train-{{000..002}}.tar", r"names tars; give the folder, or its URL, .* \(--no-index\)"),
        ("{url}/html", r"HTTP 404"),
    ],
)
def test_a_wrong_address_is_one_line(
    place: str, reason: str, world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, place.format(url=serve(world).url))
    line = refused(capfd, "train", recipe, "--output", tmp_path / "out")
    assert re.search(reason, line), line
    assert not (tmp_path / "out").exists()


def test_an_evaluation_needs_an_index(
    world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(world)
    for words in (
        ("--data", f"{server.url}/nowhere"),
        ("--suite", "clean,dark", "--data", f"{server.url}/no"),
    ):
        line = refused(capfd, "eval", world / "run", *words)
        assert "`shards index`" in line
        assert "--no-index" not in line
    recipe = write(tmp_path, world / "train", val=f"{server.url}/nowhere?token=secret")
    line = refused(capfd, "train", recipe, "--output", tmp_path / "out")
    assert "data.val" in line
    assert "`shards index`" in line
    assert "--no-index" not in line
    assert "secret" not in line


def test_the_doctor_looks_and_writes_nothing(
    world: Path, serve: Serve, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, f"{serve(world).url}/thin")
    run("doctor", recipe, "--no-self-test")
    assert "70 shards, 64 of them shuffled together" in " ".join(capfd.readouterr().out.split())
    shutil.copytree(world / "train", tmp_path / "tars", ignore=lambda _, names: unindexed(names))
    run("doctor", write(tmp_path, tmp_path / "tars"), "--no-self-test")
    assert "tars without index.json" in " ".join(capfd.readouterr().out.split())
    assert not (tmp_path / "tars/index.json").exists()
