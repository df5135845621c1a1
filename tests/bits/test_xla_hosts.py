"""The division of a batch over the hosts of a pod, with two hosts played by one process: no pod was ever there."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("xla_hosts_worker.py")
CASES = re.findall(r"^def (case_\w+)", PROGRAM.read_text(), flags=re.MULTILINE)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


@pytest.fixture(scope="module")
def outcomes(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hosts")
    shutil.copytree(digits / "val", folder / "val")
    environment = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "4",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, PROGRAM, folder / "val", folder / "out.json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads((folder / "out.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_hosts(outcomes: dict[str, str], case: str) -> None:
    assert outcomes[case] == "ok", outcomes[case]
