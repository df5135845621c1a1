"""The native TPU device: refused in one line where it is missing, conforming where it is, and its code on the cpu."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bits import tpu
from bits.environment import open_environment
from bits.processes import free_port

PROGRAM = Path(__file__).with_name("conformance_cases.py")
CASES = re.findall(r"^def (case_\w+)", PROGRAM.read_text(), flags=re.MULTILINE)
# The class of the TPU with a device and a process group that are everywhere: what remains untested is the device.
ON_THE_CPU = """
import runpy, sys
sys.path.insert(0, {root!r})
from bits import tpu
tpu.DEVICE, tpu.PROCESS_GROUP, tpu.missing = "cpu", "gloo", lambda: ""
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def conforms(command: list[str], world: int, folder: Path) -> dict[str, list[str]]:
    """Outcome of each case on each rank, of `command` started with the conformance program's arguments."""
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    children = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
        words = [*command, str(PROGRAM), "tpu", str(world), "1", str(folder)]
        children.append(subprocess.Popen(words, env=shared | ranks, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=500)[1] for child in children]
    files = sorted(folder.glob("rank-*.json"))
    assert len(files) == world, "\n".join(errors)[-3000:]
    results = [json.loads(file.read_text()) for file in files]
    return {name: [result[name] for result in results] for name in CASES}


@pytest.mark.parametrize("world", [1, 2])
def test_the_class_conforms_on_the_cpu(world: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_THE_CPU.format(root=str(PROGRAM.parents[2]))]
    outcomes = conforms(command, world, tmp_path)
    assert {name: found for name, found in outcomes.items() if found != ["ok"] * world} == {}


def test_the_device_conforms(tmp_path: Path) -> None:
    if reason := tpu.missing():
        pytest.skip(reason)
    outcomes = conforms([sys.executable], 1, tmp_path)
    assert {name: found for name, found in outcomes.items() if found != ["ok"]} == {}


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(
        ValueError, match=r"^backend tpu: package torch_tpu is not installed; make an environment"
    ):
        open_environment("tpu")
    with pytest.raises(ValueError, match=r"^backend tpu: package torch_tpu is not installed"):
        tpu.prepare_launch(4)
    monkeypatch.setattr(metadata, "version", lambda name: "0.2.0")
    monkeypatch.setattr(torch, "__version__", "2.9.0+cpu")
    with pytest.raises(ValueError, match=r"torch_tpu 0\.2\.0 needs torch 2\.11 or newer and 2\.9\.0\+cpu is"):
        open_environment("tpu")
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.setattr(tpu, "import_module", lambda name: None)
    with pytest.raises(ValueError, match=r"torch_tpu 0\.2\.0 finds no TPU on this machine"):
        open_environment("tpu")


def test_what_the_device_does_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "missing", lambda: "")
    with pytest.raises(ValueError, match=r"run\.precision fp16 has no loss scaler on a TPU"):
        open_environment("tpu", precision="fp16")
    with pytest.raises(
        ValueError, match=r"4 devices in one process needs launch_xla\.py; here use --num-proc"
    ):
        open_environment("tpu", num_devices=4)


def test_the_launcher_takes_it_when_told_to(launch, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    if not (reason := tpu.missing()):
        pytest.skip("a TPU answers")
    monkeypatch.setenv("ROBUST_BITS_TPU", "1")
    recipe = "recipes/quickstart/cnn_clean.yaml"
    for flags in ([], ["--num-processes", "2"]):
        done = launch("gpu", *flags, "train", recipe, "data.train=none", "--dry-run")
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1] == f"error: backend tpu: {reason}"
