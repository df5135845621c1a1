"""Every mistake of a user: one line with value, rule and remedy, exit code 2, nothing overwritten."""

import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bits.checkpoint import latest_checkpoint, load_checkpoint
from data.index import INDEX_FILE, RECORD, load_index
from data.shards import index_existing, make
from data.tar import Writer
from engine.cli import Launch, main
from engine.log import read_log

RECIPE = """
data:
  {{train: {shards}/train, val: {shards}/val, image_size: 32, num_workers: 0, flip: 0.0, eval_resize: squash}}
model: {{name: small_cnn, norm_stats: local, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}
optim: {{lr: 1e-3}}
objective: {{kind: clean}}
run: {{epochs: 2, batch_size: 8, checkpoint_every: 2, report_every: 2}}
"""
CPU = Launch(backend="cpu")
Refusal = Callable[..., str]
Snapshot = dict[str, bytes]


def encode(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(folder: Path, *, seed: int = 0, num_classes: int = 4, per_class: int = 6) -> Path:
    for label in range(num_classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(per_class):
            (folder / str(label) / f"{number}.png").write_bytes(encode(1000 * seed + 100 * label + number))
    return folder


def snapshot(root: Path) -> Snapshot:
    """Every file below `root` with its bytes, every folder too."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")
    }


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ of 24 noise images in 4 classes, and the run of a recipe on them: 6 updates, 2 checkpoints."""
    root = tmp_path_factory.mktemp("made")
    for seed, split in enumerate(("train", "val")):
        source = write_folder(root / "images" / split, seed=seed)
        make(source, root / "shards" / split, split=split, samples_per_shard=10, dataset="noise")
    (root / "recipe.yaml").write_text(RECIPE.format(shards=root / "shards"))
    assert main(["train", str(root / "recipe.yaml"), "--output", str(root / "run")], CPU, program="p") == 0
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to spoil."""
    shutil.copytree(made, tmp_path / "w")
    recipe = (made / "recipe.yaml").read_text().replace(str(made), str(tmp_path / "w"))
    (tmp_path / "w" / "recipe.yaml").write_text(recipe)
    resolved = tmp_path / "w" / "run" / "recipe.yaml"
    resolved.write_text(resolved.read_text().replace(str(made), str(tmp_path / "w")))
    return tmp_path / "w"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refusal:
    """refused(*words, says=...) runs a verb and returns its one line; nothing below tmp_path may change."""

    def run(*words: str | Path, says: str = "", stdout: str = "") -> str:
        before = snapshot(tmp_path)
        capfd.readouterr()
        code = main([str(word) for word in words], CPU, program="launch_gpu.py")
        out, err = capfd.readouterr()
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: "), err
        assert re.search(says, err), err
        assert out == stdout
        assert code == 2
        assert snapshot(tmp_path) == before, "something was written"
        return err

    return run


# ---- shards


def test_missing_shard(world: Path, refused: Refusal) -> None:
    (world / "shards" / "train" / "train-000001.tar").unlink()
    train = ("train", world / "recipe.yaml", "--output", world / "new")
    refused(*train, says=r"shard train-000001\.tar is missing from .*; copy it there")
    refused(*train[:2], "--output", world / "run", says=r"shard train-000001\.tar is missing")


def test_index_that_does_not_match_the_shard(world: Path, refused: Refusal) -> None:
    shard = world / "shards" / "train" / "train-000000.tar"
    size = shard.stat().st_size
    with shard.open("ab") as file:
        file.write(bytes(512))
    says = f"train-000000.tar has {size + 512} bytes but the index says {size}; fetch it again"
    refused("train", world / "recipe.yaml", "--output", world / "new", says=says)


def test_bytes_that_differ_from_the_index(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Found while training: the run ends with shard and key named, and what it had written stays."""
    index = load_index(world / "shards" / "train")
    for number, shard in enumerate(index.shards):
        flip_byte(index.root / shard.name, int(index.records(number)["offset"][0]) + 100)
    code = main(["train", str(world / "recipe.yaml"), "--output", str(world / "new")], CPU, program="p")
    err = capfd.readouterr().err
    assert code == 3
    assert re.search(r"error: bad sample '.*' in shard train-.*tar: .*crc32.*; run `shards verify`", err)
    assert "Traceback" not in err
    assert json.loads((world / "new" / "exit.json").read_text()) == {"exit_code": 3}
    assert read_log(world / "new" / "log.jsonl")[-1]["event"] == "error"


def rewrite_records(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    """Changes the records of the first shard, as an index written by another program might have them."""
    path = next(iter(sorted(folder.glob("*.idx.npy"))))
    records = np.load(path).astype(RECORD)
    change(records)
    np.save(path, records)
    description = json.loads((folder / INDEX_FILE).read_text())
    description["shards"][0]["index_sha256"] = sha256(path.read_bytes()).hexdigest()
    (folder / INDEX_FILE).write_text(json.dumps(description))


def test_label_out_of_range(world: Path, refused: Refusal) -> None:
    def change(records: np.ndarray) -> None:
        records["label"][3] = 4

    rewrite_records(world / "shards" / "train", change)
    says = r"train-000000\.tar holds label 4, outside 0\.\.3; correct the \.cls member"
    refused("train", world / "recipe.yaml", "--output", world / "new", says=says)


def test_member_that_is_no_image(world: Path, refused: Refusal, capfd: pytest.CaptureFixture[str]) -> None:
    folder = world / "text"
    folder.mkdir()
    with (folder / "train-0.tar").open("wb") as file:
        writer = Writer(file)
        for number in range(8):
            writer.add(f"{number}.png", encode(number) if number else b"hello, no pixels here")
            writer.add(f"{number}.cls", b"0")
        writer.close()
    says = r"shard train-0\.tar, key '0': .*are not a JPEG, PNG, WebP.*; remove or repair it"
    refused("shards", "index", folder, "--workers", "0", says=says)
    # The same in a dataset whose index agrees with the bytes: found by the decoder while training.
    shard = world / "shards" / "train" / "train-000000.tar"
    index = load_index(world / "shards" / "train")
    record = index.records(0)[0].copy()
    with shard.open("r+b") as file:
        file.seek(int(record["offset"]))
        file.write(bytes(int(record["size"])))

    def change(records: np.ndarray) -> None:
        records["crc32"][0] = zlib.crc32(bytes(int(record["size"])))

    rewrite_records(world / "shards" / "train", change)
    code = main(["train", str(world / "recipe.yaml"), "--output", str(world / "new")], CPU, program="p")
    err = capfd.readouterr().err
    assert code == 3
    assert re.search(r"\nerror: bad sample '.*' in shard train-000000\.tar: .* not a JPEG, PNG", err), err
    assert "Traceback" not in err


def test_two_datasets_of_different_classes(world: Path, refused: Refusal) -> None:
    shutil.rmtree(world / "shards" / "val")
    make(write_folder(world / "five", num_classes=5), world / "shards" / "val", split="val")
    says = r"data\.val .* has 5 classes and the training shards have 4; the model would be misjudged"
    refused("train", world / "recipe.yaml", "--output", world / "new", says=says)
    refused("eval", world / "run", says=r"data\.val .* has 5 classes")
    refused("eval", world / "run", "--data", world / "shards" / "val", says=r"suite clean: .* has 5 classes")


def test_classes_of_other_names(world: Path, refused: Refusal) -> None:
    """As many classes, but label 2 means another thing: a wrong accuracy without this."""
    folder = write_folder(world / "renamed")
    last = sorted(child.name for child in folder.iterdir())[-1]
    (folder / last).rename(folder / "zz")
    make(folder, world / "shards" / "renamed", split="val")
    says = rf"has class 'zz' as number 3, the training shards have '{last}' there"
    refused("eval", world / "run", "--data", world / "shards" / "renamed", says=says)
    refused(
        "train",
        world / "recipe.yaml",
        f"data.val={world}/shards/renamed",
        "--output",
        world / "new",
        says=says,
    )


def test_resume_from_another_run_keeps_its_start(world: Path) -> None:
    """A kill before the new run's first own checkpoint must not lose what it started from."""
    words = [
        "train",
        str(world / "recipe.yaml"),
        "--resume",
        str(world / "run"),
        "--output",
        str(world / "new"),
    ]
    for _ in range(2):  # the same command once more goes on from the new run
        assert main(words, CPU, program="p") == 0
        assert [path.name for path in (world / "new" / "checkpoints").glob("step-*.pt")] == [
            "step-00000006.pt"
        ]


@pytest.mark.parametrize("written", [("checkpoints",), ("checkpoints", "recipe.yaml", "environment.json")])
def test_a_start_from_another_run_that_was_killed_begins_anew(world: Path, written: tuple[str, ...]) -> None:
    """Between the state it takes over, its recipe and its first log entry: the same command goes on."""
    words = ["train", str(world / "recipe.yaml"), "--resume", str(world / "run"), "--output"]
    assert main([*words, str(world / "new")], CPU, program="p") == 0
    for path in (world / "new").iterdir():
        if path.name not in written:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (world / "new/checkpoints").glob("healthy-*"):  # named behind the recipe
        path.unlink()
    assert main([*words, str(world / "new")], CPU, program="p") == 0
    assert (world / "new/exit.json").exists()


def test_a_torn_state_of_a_killed_start_is_written_again(world: Path) -> None:
    (world / "new/checkpoints").mkdir(parents=True)
    (world / "new/checkpoints/step-00000006.pt").write_bytes(b"of something else")
    words = ["train", str(world / "recipe.yaml"), "--resume", str(world / "run"), "--output"]
    assert main([*words, str(world / "new")], CPU, program="p") == 0
    assert latest_checkpoint(world / "new/checkpoints") is not None


def test_odd_batch_per_process_with_mixing(world: Path, launch: Any) -> None:
    words = ("objective.mixup=0.2", "run.batch_size=6", "--output", world / "new")
    done = launch("gpu", "--cpu", "--num-processes", 2, "train", world / "recipe.yaml", *words)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: run\.batch_size 6 gives each of 2 processes 3 images, .*; try 8\n", done.stderr
    )
    assert not (world / "new").exists()


def test_no_shards_there(world: Path, refused: Refusal) -> None:
    says = r"no index\.json in .*nowhere; write one with `shards index"
    refused("train", world / "recipe.yaml", f"data.train={world}/nowhere", says=says)
    refused("eval", world / "run", "--data", world / "nowhere", says=says)
    refused("shards", "info", world / "nowhere", says=says)
    refused("shards", "verify", world / "nowhere", says=says)
    refused("shards", "index", world / "nowhere", says=r"no \*\.tar files in .*nowhere")


def test_damaged_index(world: Path, refused: Refusal) -> None:
    index = world / "shards" / "train" / INDEX_FILE
    index.write_text(index.read_text()[:-20])
    refused("train", world / "recipe.yaml", "--output", world / "new", says=r"index\.json: .*write it again")
    for text in ('{"version": 1, "shards": []}', "[1]", '{"version": ' + "[" * 100_000):
        index.write_text(text)
        refused("shards", "info", index.parent, says=r"index\.json: .*write it again")


def test_shards_make(world: Path, refused: Refusal) -> None:
    (world / "empty").mkdir()
    refused("shards", "make", world / "absent", world / "d", says="no folder .*absent")
    refused("shards", "make", world / "empty", world / "d", says="has no class folders; expected")
    (world / "empty" / "cat").mkdir()
    refused("shards", "make", world / "empty", world / "d", says="class folder .*cat is empty; remove it")
    images = write_folder(world / "mixed")
    (images / "2" / "notes.txt").write_text("no image")
    says = r"1 files under .* are not JPEG, PNG or WebP images: 2/notes\.txt; remove or convert"
    refused("shards", "make", images, world / "d", says=says)
    (images / "2" / "notes.txt").unlink()
    (images / "2" / "cut.png").write_bytes(encode(1)[:200])
    for workers in ("0", "1"):
        says = r"2/cut\.png: the PNG image cannot be decoded.*; remove or repair it"
        refused("shards", "make", images, world / "d", "--workers", workers, says=says)


def test_shards_make_over_something(world: Path, refused: Refusal) -> None:
    images = world / "images" / "train"
    refused("shards", "make", images, world / "shards" / "train", says="is not empty; choose another folder")
    refused("shards", "make", images, world / "recipe.yaml", says=r"recipe\.yaml is a file; give a folder")
    refused("shards", "make", images, world / "recipe.yaml" / "below", says=r"recipe\.yaml.*; ")
    refused("shards", "digits", world / "shards", says="already exists and is not an empty folder")
    refused("shards", "digits", world / "recipe.yaml" / "below", says=r"recipe\.yaml.*; ")


def test_shards_arguments(world: Path, refused: Refusal) -> None:
    images, new = world / "images" / "train", world / "new"
    refused("shards", "make", images, says="takes SRC DST; 1 paths were given")
    refused("shards", "make", images, new, "--samples-per-shard", "0", says="samples_per_shard 0 must be")
    refused("shards", "make", images, new, "--samples-per-shard", "x", says="invalid int value: 'x'")
    refused("shards", "make", images, new, "--workers", "-1", says="--workers -1: give 0 .* or more")
    refused("shards", "make", images, new, "--split", "a/b", says="split 'a/b' .* use a plain name")
    refused("shards", "digits", new, "--size", "4", says="size 4 is below the scans' own 8 pixels; use 8")
    refused("shards", "sort", images, says="invalid choice: 'sort'")


def test_shards_verify(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = world / "shards" / "train"
    assert main(["shards", "verify", str(folder)], CPU, program="p") == 0
    assert "0 problems" in capfd.readouterr().out
    flip_byte(folder / "train-000001.tar", 700)
    (folder / "train-000002.tar").unlink()
    listed = world / "problems.json"
    assert main(["shards", "verify", str(folder), "--json", str(listed)], CPU, program="p") == 2
    out, err = capfd.readouterr()
    assert err == ""
    assert "problem: shard train-000001.tar: sha256 differs from the index" in out
    assert "problem: shard train-000002.tar: missing" in out
    assert re.search(r"problem: shard train-000001\.tar, key '.*': the image's crc32 differs", out)
    assert len(json.loads(listed.read_text())["problems"]) == out.count("problem: ")


# ---- the recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.name=small_cnnn", "unknown model 'small_cnnn'; .*nearest: small_cnn"),
        ("model.args.widht=8", r"model 'small_cnn' has no setting 'widht'.*; remove it"),
        ("model.args.drop_rate=wide", "model 'small_cnn' refuses .*drop_rate"),
        ("model.args.num_classes=3", r"model\.args has num_classes, which is set .*; remove it"),
        ("model.args.in_chans=1", r"model\.args has in_chans, which is set .*; remove it"),
        ("model.name=resnet18 model.args.block=x", "model 'resnet18' refuses .*'block': 'x'"),
        ("data.randaug=rand-m9-foo", "randaug 'rand-m9-foo' is not timm's notation; an example is"),
        ("optim.lrr=1e-3", r"optim\.lrr is not a field; did you mean optim\.lr\?"),
        ("optim.lr=fast", r"optim\.lr is 'fast', but must be a number"),
        ("run.epochs=1.5", r"run\.epochs is 1\.5, but must be a whole number"),
        ("data.num_classes=7", r"has 4 classes and data\.num_classes is 7; correct one of the two"),
        (
            "run.batch_size=25",
            "batch_size 25 .*makes no update from the 24 images of data.train in 2 epochs; lower it",
        ),
        ("optim.accumulate=7", r"accumulate 7\) makes no update .* in 2 epochs; lower it"),
        ("model.norm_stats=ghost:3", r"ghost:3.*8"),
        ("run.precision=fp16", "fp16 needs CUDA; on the cpu use bf16 or float32"),
        ("run.reduce_dtype=fp16", r"run\.reduce_dtype is 'fp16', but must be .*float32.*bf16"),
        ("data.image_size=31 model.name=small_vit", "image size 31 is no multiple of .*; try 28 or 32"),
        ("stray", "override 'stray' is not key=value; write it as"),
    ],
)
def test_recipe(made: Path, refused: Refusal, tmp_path: Path, override: str, says: str) -> None:
    refused("train", made / "recipe.yaml", *override.split(), "--output", tmp_path / "new", says=says)


def test_recipe_file(world: Path, refused: Refusal) -> None:
    path = world / "recipe.yaml"
    refused("train", world / "none.yaml", says=r"none\.yaml does not exist; give the path of a \.yaml file")
    refused("train", world, says="; ")
    good = path.read_text()
    path.write_text(good.replace("lr: 1e-3", "lrr: 1e-3"))
    refused("train", path, says=r"recipe .*: optim\.lrr is not a field; did you mean optim\.lr\?")
    path.write_text(good.replace("epochs: 2", "epochs: two"))
    refused("train", path, says=r"run\.epochs is 'two', but must be a whole number")
    path.write_text(good.replace("small_cnn", "smal_cnn"))
    refused("train", path, "--output", world / "new", says="unknown model 'smal_cnn'; .*small_cnn")
    path.write_text("data: [")
    refused("train", path, says="not valid YAML at line 1")


# ---- the output folder


def test_output_that_cannot_be_written(world: Path, refused: Refusal) -> None:
    below = world / "recipe.yaml" / "a" / "b"
    says = r"output folder .*: .*recipe\.yaml is a file; choose another --output"
    refused("train", world / "recipe.yaml", "--output", below, says=says)
    refused("train", world / "recipe.yaml", "--output", world / "recipe.yaml", says=says)
    refused("eval", world / "run", "--output", below, says=says)
    # Root may write wherever a mount is not read-only; /proc and /sys take no folders from anyone.
    refused(
        "train", world / "recipe.yaml", "--output", "/proc/robust-bits/run", says="output folder /proc/.*; "
    )


def test_read_only_output(world: Path, refused: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, whom no permission stops: the operating system's answer is set here."""
    allowed = os.access

    def access(path: str | Path, mode: int, **more: bool) -> bool:
        return allowed(path, mode, **more) and not (mode & os.W_OK and Path(path).is_relative_to(world))

    monkeypatch.setattr(os, "access", access)
    says = "output folder .*: .* is not writable; choose another --output"
    refused("train", world / "recipe.yaml", "--output", world / "new", says=says)
    refused("eval", world / "run", "--output", world / "new", says=says)
    refused("eval", world / "run", says=says)
    refused("eval", world / "run", "--json", world / "x.json", says="--json .*x.json: not writable")


def test_output_that_holds_something_else(world: Path, refused: Refusal) -> None:
    other = world / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("mine")
    says = "output folder .*thesis is not empty and holds no run; choose another --output"
    refused("train", world / "recipe.yaml", "--output", other, says=says)
    refused("train", world / "recipe.yaml", f"run.output={other}", says=says)
    refused("eval", world / "run", "--output", other, says="thesis holds something else; choose another")
    shutil.copytree(world / "run", world / "run2")
    refused("eval", world / "run", "--output", world / "run2", says="run2 holds another run; choose another")


# ---- resuming


def checkpoints(run: Path) -> list[Path]:
    found = sorted((run / "checkpoints").glob("step-*.pt"))
    assert len(found) == 2
    return found


def test_resume_with_another_recipe(world: Path, refused: Refusal) -> None:
    words = ("train", world / "recipe.yaml", "optim.lr=2e-3", "run.seed=1")
    says = r"run was made with another recipe: optim\.lr, run\.seed differ; .*choose another --output"
    refused(*words, "--output", world / "run", says=says)
    refused(*words, "--output", world / "new", "--resume", world / "run", says=says)


def test_resume_never(world: Path, refused: Refusal) -> None:
    words = ("train", world / "recipe.yaml", "--output", world / "run", "--resume", "never")
    refused(*words, says="run holds a run and --resume never was given; choose another --output")


def test_resume_from_a_wrong_path(world: Path, refused: Refusal) -> None:
    words = ("train", world / "recipe.yaml", "--output", world / "new", "--resume")
    says = "no checkpoint there; give auto, never, a run folder or a step-"
    for path in (
        world / "nowhere",
        world / "shards",
        world / "run" / "checkpoints" / "step-00000099.pt",
        "on",
    ):
        refused(*words, path, says=says)
    # A good source, but the output folder is another run's.
    shutil.copytree(world / "run", world / "run2")
    words = ("train", world / "recipe.yaml", "--output", world / "run2", "--resume")
    says = "run2 is not empty and --resume .*run is another run; choose a new --output"
    refused(*words, world / "run", says=says)


def test_resume_with_other_data_at_the_same_path(world: Path, refused: Refusal) -> None:
    shutil.rmtree(world / "shards" / "train")
    make(write_folder(world / "others", seed=7), world / "shards" / "train", split="train")
    words = ("train", world / "recipe.yaml", "--output", world / "run")
    refused(*words, says=r"was trained on dataset \w{12}, data\.train holds \w{12}; give the same shards")


def assert_equal_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_newest_checkpoint_unusable(world: Path, capfd: pytest.CaptureFixture[str], damage: str) -> None:
    """The one before is used, and said so; the resumed run ends with the same weights."""
    before, newest = checkpoints(world / "run")
    good = newest.read_bytes()
    if damage == "torn":
        newest.write_bytes(good[: len(good) // 2])
    else:
        flip_byte(newest, len(good) // 2)
    words = ["train", str(world / "recipe.yaml"), "--output", str(world / "run")]
    assert main(words, CPU, program="p") == 0
    err = capfd.readouterr().err
    assert re.search(rf"passed over: .*{newest.name}: .*sha256.*torn or altered", err)
    assert f"resumed at step {int(before.stem[5:])}:" in err
    assert_equal_state(
        load_checkpoint(newest)["model"], torch.load(io.BytesIO(good), weights_only=True)["model"]
    )


def test_every_checkpoint_unusable(world: Path, refused: Refusal) -> None:
    # healthy-*.pt is what a run goes back to, and goes on from where all others are damaged
    for path in [*checkpoints(world / "run"), *(world / "run/checkpoints").glob("healthy-*.pt")]:
        flip_byte(path, path.stat().st_size // 2)
    says = r"no usable checkpoint; .*torn or altered; delete it"
    refused("train", world / "recipe.yaml", "--output", world / "run", says=says)
    refused("eval", world / "run", says=says)
    says = r"step-00000006\.pt: \d+ bytes do not match the committed sha256"
    refused("eval", checkpoints(world / "run")[1], says=says)
    words = ("train", world / "recipe.yaml", "--output", world / "new", "--resume")
    refused(*words, checkpoints(world / "run")[1], says=says)


def test_checkpoint_of_another_model(world: Path, refused: Refusal) -> None:
    """A recipe edited by hand after training: the weights no longer fit."""
    path = world / "run" / "recipe.yaml"
    path.write_text(path.read_text().replace("small_cnn", "small_vit"))
    refused("eval", world / "run", says=r"weights do not fit the recipe's model .*; .* train again")
    words = ("train", world / "recipe.yaml", "model.name=small_vit", "--output", world / "run")
    refused(*words, says=r"state does not fit the recipe's model .*; .*choose another --output")


@pytest.mark.parametrize("facts", [None, {}, {"dataset_id": 3}])
def test_facts_of_a_checkpoint_rewritten(world: Path, refused: Refusal, facts: object) -> None:
    for path in (world / "run" / "checkpoints").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "facts": facts}))
    says = r"step-00000006\.json does not name the classes; use an earlier|not the JSON of a checkpoint"
    refused("eval", world / "run", says=says)
    refused("train", world / "recipe.yaml", "--output", world / "run", says="checkpoint")


# ---- measuring


def test_no_run_to_measure(world: Path, refused: Refusal) -> None:
    says = "is no run folder, nor a checkpoint in one .*; give a run folder, a checkpoint in one"
    for path in (world / "nowhere", world / "shards", world / "recipe.yaml", "weights.pt"):
        refused("eval", path, says=says)
    shutil.rmtree(world / "run" / "checkpoints")
    refused("eval", world / "run", says="run has no checkpoint yet; train it first")
    refused("attack", world / "run", "--eps", "4/255", says="run has no checkpoint yet; train it first")
    (world / "run" / "recipe.yaml").write_text("data: [")
    refused("eval", world / "run", says=r"run/recipe\.yaml: not valid YAML")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "eval --suite imagenet_q",
            "--suite imagenet_q: the run's recipe names no data.suites; give --data ROOT",
        ),
        ("eval --suite clean,clean", "two entries named clean"),
        ("eval --batch-size 0", "--batch-size is 0, but must be greater than 0"),
        ("attack --eps 4", "--eps is 4, but images and radii live in .*; likely meant: 4/255"),
        ("attack --eps 4.0", "--eps is 4.0, .* likely meant: 4/255"),
        ("attack --eps four", "--eps is 'four', but must be a number"),
        ("attack --eps 4/0", "--eps is '4/0', but must be a number"),
        ("attack --eps 0", "--eps is 0, but must be greater than 0"),
        ("attack --eps -1/255", "eps"),
        ("attack", "arguments are required: --eps"),
        ("attack --eps 4/255 --step-size 1", "--step-size is 1, .* likely meant: 1/255"),
        ("attack --eps 4/255 --attack pdg", "--attack is 'pdg', but must be 'pgd' or 'autoattack'"),
        ("attack --eps 4/255 --norm l1", "--norm is 'l1', but must be 'linf' or 'l2'"),
        (
            "attack --attack autoattack --eps 4 --norm l3",
            "--norm is 'l3', but must be 'linf', 'l2' or 'l1'",
        ),
        ("attack --eps 4/255 --steps 0", "--steps is 0, but must be greater than 0"),
        ("attack --eps 4/255 --num-images 0", "--num-images is 0, but must be greater than 0"),
    ],
)
def test_measuring_arguments(made: Path, refused: Refusal, words: str, says: str) -> None:
    verb, *rest = words.split()
    refused(verb, made / "run", *rest, says=says)


def test_radii_as_people_write_them(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, eps in enumerate(("4/255", "0.0157", "1.57e-2")):
        words = ["--eps", eps, "--steps", "1", "--num-images", "4", "--output", str(tmp_path / str(number))]
        assert main(["attack", str(made / "run"), *words], CPU, program="p") == 0, capfd.readouterr().err


def test_json_is_refused_before_the_work(world: Path, refused: Refusal) -> None:
    for path in (world / "no" / "such" / "x.json", world, world / "recipe.yaml" / "x.json"):
        says = "--json .*: not a file in an existing folder; make the folder, or give another path"
        refused("train", world / "recipe.yaml", "--output", world / "new", "--json", path, says=says)
        refused("eval", world / "run", "--json", path, says=says)
        refused("shards", "info", world / "shards" / "train", "--json", path, says=says)


def test_label_without_a_class(world: Path, refused: Refusal) -> None:
    folder = world / "shards" / "train"
    (folder / "classes.txt").write_text("cat\ndog\n")
    says = r"train-000000\.tar holds label 3, outside 0\.\.1; correct the \.cls member, or name all classes"
    refused("shards", "index", folder, "--workers", "0", says=says)


def test_failed_index_leaves_the_older_one(world: Path, refused: Refusal) -> None:
    folder = world / "shards" / "train"
    before = load_index(folder).dataset_id
    (folder / "zzz.tar").write_bytes(b"no tar")
    refused("shards", "index", folder, says=r"shard zzz\.tar, byte 0: .*; make the shard again")
    (folder / "zzz.tar").unlink()
    assert index_existing(folder).dataset_id == before
