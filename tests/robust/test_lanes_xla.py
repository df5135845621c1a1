"""Components in lanes on XLA:CPU: few graphs, none on a second block, no read inside a chunk, the cpu's verdicts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "lanes_xla_worker.py"
NAMES = (
    "apgd-ce linf",
    "apgd-dlr l2, eot 2",
    "apgd-t linf",
    "apgd-pm l1",
    "apgd-ce l1, larger balls",
    "fab-t linf",
    "fab-t l2",
    "fab-t l1",
    "fab linf",
    "square linf",
    "square l2",
    "square l1",
)
MOST_GRAPHS = 4
MOST_CALLS = 6  # of the model in Python: three traces of a step, which asks it at most twice

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"),
]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    environment = {
        **os.environ,
        "PJRT_DEVICE": "CPU",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, str(WORKER)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", NAMES)
def test_a_component_needs_few_graphs_and_no_host(name: str, reports: dict[str, dict[str, Any]]) -> None:
    first, second = reports[name]["block 0"], reports[name]["block 1"]
    assert first["compiles"] <= MOST_GRAPHS
    assert second["compiles"] == 0, "other images, another number of steps a chunk, the same graphs"
    for block in (first, second):
        assert block["fallbacks"] == 0
        assert block["host_reads"] == block["chunks"], "one read behind each chunk, none inside"
        assert 0 < block["calls"] <= MOST_CALLS, "a step was traced at every call"


@pytest.mark.parametrize("name", NAMES)
def test_its_verdicts_are_those_of_the_cpu(name: str, reports: dict[str, dict[str, Any]]) -> None:
    report = reports[name]
    assert report["different"] == 0, "of 64 images"
    assert 0 < report["found"] < 64
