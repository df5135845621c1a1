"""A step that is traced once gives what it gives traced at every call; one that a graph cannot follow is called."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("xla_repeat_worker.py")
TRACES = 3  # of a shape: one to see what it does, two that must be alike
CALLS = 15

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    environment = {
        **os.environ,
        "PJRT_DEVICE": "CPU",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, str(WORKER)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("name", ["plain", "differentiated"])
def test_a_step_is_traced_once_a_shape(name: str, reports: dict[str, dict[str, Any]]) -> None:
    assert reports[name]["equal"], "to the bit, also behind a refill and in another shape"
    assert reports[name]["calls"] == 2 * TRACES
    assert reports[name]["compiles"] == 2, "a graph for each shape"


@pytest.mark.parametrize("name", ["changes_a_buffer", "draws", "reads", "falls_back"])
def test_a_step_that_does_more_is_called_once_each_time(
    name: str, reports: dict[str, dict[str, Any]]
) -> None:
    assert reports[name]["equal"], "its buffers and random numbers too"
    assert reports[name]["calls"] == CALLS


@pytest.mark.parametrize("name", ["counts", "gives_a_weight"])
def test_a_step_whose_graph_is_not_its_state_s_alone_is_called(
    name: str, reports: dict[str, dict[str, Any]]
) -> None:
    assert reports[name]["calls"] >= CALLS


def test_a_result_that_is_a_weight_is_that_weight(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["gives_a_weight"]["equal"]


def test_weights_are_those_of_the_first_call(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["replaced weights"]["equal"]
