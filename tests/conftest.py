"""Shared by all tests: shards of real digits made once a session, and how to start a launcher."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards train/ (1,438 images, 3 shards) and val/ (359, 1 shard) of scanned digits at 32 px."""
    from data.digits import write_digits
    from data.shards import make

    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "images", size=32)
    for split in ("train", "val"):
        make(folder / "images" / split, folder / split, split=split, samples_per_shard=500)
    return folder


def launcher_environment(**extra: str) -> dict[str, str]:
    """One thread, XLA on the cpu, and no rank left over from an outer launcher."""
    outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return outer | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"} | extra


@pytest.fixture(scope="session")
def launch() -> Launch:
    """launch("gpu"|"xla", *words) runs a launcher to its end and gives exit code, stdout and stderr."""

    def run(kind: str, *words: str | Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / f"launch_{kind}.py"), *map(str, words)]
        return subprocess.run(
            command,
            env=launcher_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def process_environment() -> Callable[..., dict[str, str]]:
    """process_environment(NAME=value, ...) -> the environment for a worker program."""
    return launcher_environment
