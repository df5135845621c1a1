"""Every backend passes the same cases: cpu with 1 and 2 processes, XLA with 1 and 4 devices, cuda where it exists."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bits.processes import free_port

PROGRAM = Path(__file__).with_name("conformance_cases.py")
CASES = re.findall(r"^def (case_\w+)", PROGRAM.read_text(), flags=re.MULTILINE)
LAYOUTS = [
    pytest.param(("cpu", 1, 1), id="cpu-x1"),
    pytest.param(("cpu", 2, 1), id="cpu-x2"),
    pytest.param(("xla", 1, 1), id="xla-x1"),
    pytest.param(("xla", 1, 4), id="xla-x4"),
    pytest.param(("cuda", 1, 1), id="cuda-x1", marks=pytest.mark.gpu),
]


@cache
def run_layout(layout: tuple[str, int, int], folder: Path) -> dict[str, list[str]]:
    """Outcome of each case on each rank; one start of the backend serves all cases."""
    backend, world, devices = layout
    folder.mkdir(parents=True)
    shared = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TF_CPP_MIN_LOG_LEVEL": "2"}
    shared |= {
        "ACCELERATE_MIXED_PRECISION": "bf16"
    }  # as `accelerate launch --mixed_precision bf16` leaves it
    command = [sys.executable, str(PROGRAM), backend, str(world), str(devices), str(folder)]
    children = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
        children.append(subprocess.Popen(command, env=shared | ranks, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=300)[1] for child in children]
    files = sorted(folder.glob("rank-*.json"))
    assert len(files) == world, "\n".join(errors)[-3000:]
    results = [json.loads(file.read_text()) for file in files]
    return {name: [result[name] for result in results] for name in CASES}


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backend_conforms(layout: tuple[str, int, int], case: str, scratch: Path) -> None:
    outcomes = run_layout(layout, scratch / "-".join(map(str, layout)))[case]
    assert outcomes == ["ok"] * layout[1], "\n".join(outcomes)
