"""What launchers check before anything heavy is imported, and mistakes that need real processes."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import import_module, metadata, util
from pathlib import Path

import pytest

from data.index import load_index
from data.order import permutation
from engine.cli import Launch
from engine.launch import check_packages, check_torch_xla, launcher_flags

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("launch_gpu.py", "launch_xla.py")
Version = namedtuple("Version", "major minor micro releaselevel serial")
RECIPE = """
data: {{train: {digits}/train, image_size: 32, num_workers: 0, flip: 0.0}}
model: {{name: small_cnn}}
optim: {{lr: 1e-3}}
run: {{epochs: 1, batch_size: 64, max_steps: 3}}
"""


@pytest.fixture
def recipe(digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(digits=digits))
    return path


def one_line(done: "subprocess.CompletedProcess[str]", *, code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


# ---- Python and packages


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 10), (3, 14)])
def test_wrong_python(
    launcher: str,
    version: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", Version(*version, 0, "final", 0))
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / launcher), run_name="__main__")
    assert exit_.value.code == 2
    says = f"error: Python {version[0]}.{version[1]} is not supported; use Python 3.11, 3.12 or 3.13\n"
    assert capsys.readouterr() == ("", says)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_older_python_can_read_as_far_as_the_check(launcher: str) -> None:
    """A launcher must parse there, and import nothing but os and sys before it."""
    tree = ast.parse((ROOT / launcher).read_text(), feature_version=(3, 7))
    before = tree.body[: next(i for i, node in enumerate(tree.body) if isinstance(node, ast.If))]
    names = [alias.name for node in before if isinstance(node, ast.Import) for alias in node.names]
    assert set(names) <= {"os", "sys"}
    assert not any(isinstance(node, ast.ImportFrom) for node in before)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_wrong_python_in_make(tmp_path: Path) -> None:
    """The Makefile's own check: one line of ours (make adds its own), and no .venv is begun."""
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "python3.9"
    patch = "import sys; sys.version_info = (3, 9, 0); exec(sys.argv[1])"
    fake.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec {sys.executable} -c "{patch}" "$2"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={fake}", "test"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1, done.stderr
    assert ours[0].startswith("error: Python 3.9 is not supported; use Python 3.11, 3.12 or 3.13")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("torch", "torch_xla", "says"),
    [
        ("2.9.1+cu128", "2.9.0", None),
        ("2.9.0", "2.9.0+libtpu", None),
        ("2.10.0", "2.9.0", r"torch 2\.10\.0 and torch_xla 2\.9\.0 do not fit together; install both of"),
        ("2.9.0+cpu", "2.8.1", r"torch 2\.9\.0\+cpu and torch_xla 2\.8\.1 do not fit together"),
        ("2.9.0", None, r"torch_xla is not installed; run `pip install -e .\[xla\]`"),
        (None, None, r"torch is not installed; run"),
    ],
)
def test_torch_and_torch_xla_are_of_one_release(
    monkeypatch: pytest.MonkeyPatch, torch: str | None, torch_xla: str | None, says: str | None
) -> None:
    def version(name: str) -> str:
        found = {"torch": torch, "torch_xla": torch_xla}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    if says is None:
        check_torch_xla()
        return
    with pytest.raises(ValueError, match=says):
        check_torch_xla()


def test_packages_lie_beside_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages(ROOT)
    with pytest.raises(ValueError, match=r"package bits was found at .*bits, not beside the launcher in "):
        check_packages(tmp_path)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"package bits was not found beside the launcher in .*whole checkout"
    ):
        check_packages(ROOT)


@pytest.mark.parametrize("is_package", [True, False])
def test_a_shadowing_package_is_named(tmp_path: Path, is_package: bool) -> None:
    """`data` of somebody else earlier on the path, as -P, an embedding or a .pth file can bring about."""
    (tmp_path / "data").mkdir()
    if is_package:
        (tmp_path / "data" / "__init__.py").write_text("")
    code = (
        "import sys, runpy; sys.argv = ['launch_gpu.py', '--help']; "
        f"runpy.run_path('{ROOT}/launch_gpu.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if is_package:
        says = (
            f"package data was found at {tmp_path}/data, not beside the launcher in {ROOT}; remove that path"
        )
        assert says in one_line(done)
    else:
        assert done.returncode == 0, "a mere folder of that name shadows nothing"


# ---- flags


def test_flags() -> None:
    known = {"--cpu": False, "--num-processes": 1}
    assert launcher_flags([], known) == (known, [])
    words = ["--cpu", "--num-processes", "3", "train", "--cpu"]
    assert launcher_flags(words, known) == ({"--cpu": True, "--num-processes": 3}, ["train", "--cpu"])
    assert launcher_flags(["--num-processes=12"], known)[0]["--num-processes"] == 12
    assert known == {"--cpu": False, "--num-processes": 1}


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "²", "two words"])
def test_flags_that_are_no_number(value: str) -> None:
    for words in (["--num-processes", value, "train"], [f"--num-processes={value}", "train"]):
        with pytest.raises(ValueError, match=r"^--num-processes .*: give a whole number, 1 or more$"):
            launcher_flags(words, {"--num-processes": 1})


def test_flags_without_or_with_a_value() -> None:
    with pytest.raises(ValueError, match="--num-processes without a value: give a whole number"):
        launcher_flags(["--num-processes"], {"--num-processes": 1})
    with pytest.raises(ValueError, match="--cpu no: this flag takes no value"):
        launcher_flags(["--cpu=no", "train"], {"--cpu": False})


def test_hosts_and_devices_of_a_pod_are_asserted_and_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/there/is/none.so")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.syspath_prepend(str(ROOT))
    launcher = import_module("launch_xla")
    asked: list[Launch] = []
    monkeypatch.setattr(launcher, "run_verb", lambda rest, launch, program: asked.append(launch) or len(rest))
    assert launcher.launch(["--num-hosts", "4", "--num-devices=8", "train", "recipe.yaml"]) == 2
    assert launcher.launch(["train"]) == 1
    assert [(each.backend, each.world_size, each.num_devices) for each in asked] == [
        ("xla", 4, 8),
        ("xla", 1, 1),
    ]


# ---- real processes


def test_refused_before_any_process_starts(launch, recipe: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    two = ("--cpu", "--num-processes", "2")
    done = launch("gpu", *two, "train", tmp_path / "none.yaml")
    assert "none.yaml does not exist; give the path of a .yaml file" in one_line(done)
    done = launch("gpu", *two, "train", recipe, "optim.lrr=1")
    assert "optim.lrr is not a field; did you mean optim.lr?" in one_line(done)
    done = launch("gpu", *two, "shards", "info", tmp_path)
    assert "--num-processes 2: shards runs in one process; drop the flag" in one_line(done)
    done = launch("gpu", "--num-processes", "0", "train", recipe)
    assert "--num-processes 0: give a whole number, 1 or more" in one_line(done)
    done = launch("xla", "--num-devices", "x", "train", recipe)
    assert "--num-devices x: give a whole number, 1 or more" in one_line(done)


def test_batch_that_two_processes_cannot_share(launch, recipe: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("train", recipe, "run.batch_size=65", "--output", tmp_path / "run")
    done = launch("gpu", "--cpu", "--num-processes", "2", *words)
    assert "run.batch_size 65 is not divisible by 2 replicas; try 64 or 66" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_batch_that_three_devices_cannot_share(launch, recipe: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = launch("xla", "--num-devices", "3", "train", recipe, "--output", tmp_path / "run")
    assert "run.batch_size 64 is not divisible by 3 replicas; try 63 or 66" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_a_bad_sample_of_one_process_is_one_line(launch, recipe: Path, digits: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Rank 1 meets it, and all of them agree that it is one too many."""
    shutil.copytree(digits / "train", tmp_path / "train")
    index = load_index(tmp_path / "train")
    second_batch_of_rank_1 = permutation(index.num_samples, seed=0, epoch=0)[64 + 32 : 128]
    key = int(second_batch_of_rank_1[7])
    shard, _ = index.locate(key)
    with (index.root / index.shards[shard].name).open("r+b") as file:
        file.seek(int(index.record(key)["offset"]) + 40)
        file.write(b"\0\0\0\0")
    words = ("train", recipe, f"data.train={index.root}", "data.max_bad=0", "--output", tmp_path / "run")
    done = launch("gpu", "--cpu", "--num-processes", "2", *words)
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if not re.match(r"started: |step ", line)]
    assert len(errors) == 1, done.stderr
    assert f"bad sample '{index.name(key)}' in shard {index.shards[shard].name}" in errors[0]
