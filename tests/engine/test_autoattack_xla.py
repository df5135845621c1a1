"""AutoAttack through the engine on XLA:CPU: all graphs come with the first block, and steps never ask the host."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "autoattack_xla_worker.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"),
]


def test_a_block_after_the_first_compiles_nothing(
    digits: Path, tmp_path: Path, process_environment: Callable[..., dict[str, str]]
) -> None:
    """Blocks of 16 images in 16 lanes, of which fewer are left at each component: lanes are not halved for them."""
    flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PJRT_DEVICE": "CPU", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(digits / "val"), str(tmp_path)],
        cwd=ROOT,
        env=process_environment() | flags | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    blocks = [found["counts"][f"block {number}"] for number in range(4)]
    assert blocks[0]["compiles"] > 0
    assert [block["compiles"] for block in blocks[1:]] == [0, 0, 0]
    assert [block["fallbacks"] for block in blocks] == [0, 0, 0, 0]
    assert found["counts"]["steps"]["host_reads"] == 0
    assert found["counts"]["steps"]["fallbacks"] == 0
    assert 0 < found["left"]["square"] < 32, "few are left for the last component"
    assert found["broken"]["apgd-ce"] > 0
