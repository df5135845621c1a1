"""A convolution in groups leaves samples on their devices: only gradients travel."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("xla_grouped_worker.py")
LARGEST_WEIGHT = 24 * 4 * 3 * 2
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("grouped")
    flags = (
        "--xla_backend_optimization_level=0 --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=spmd-partitioning"
    )
    environment = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"{flags} --xla_dump_to={folder / 'dumps'}",
    }
    done = subprocess.run(
        [sys.executable, PROGRAM, folder / "dumps", folder / "found.json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_only_gradients_travel(found: dict[str, Any], precision: str) -> None:
    collectives, _ = found[precision]
    assert {name for _, name in collectives} == {"all-reduce"}
    assert (
        max(math.prod(map(int, filter(None, axes.split(",")))) for axes, _ in collectives) <= LARGEST_WEIGHT
    )


def test_gradients_are_those_of_the_cpu(found: dict[str, Any]) -> None:
    assert found["float32"][1] < 1e-5
    assert 1e-5 < found["bf16"][1] < 0.05


def test_as_one_convolution_its_samples_would_be_gathered(found: dict[str, Any]) -> None:
    """Where this fails, the partitioner has learned it, and bits/xla_grouped.py can go."""
    assert "all-gather" in {name for _, name in found["as one convolution"][0]}
