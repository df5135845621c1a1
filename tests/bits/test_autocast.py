"""Autocast runs each operation in the dtype that TRAIN.md's table says, on the backends that are here."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("autocast_worker.py")
ROOT = Path(__file__).parents[2]
needs_xla = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


def table(backend: str) -> dict[str, str]:
    """The column of `backend` in TRAIN.md, by operation."""
    section = (ROOT / "TRAIN.md").read_text().partition("### Autocast\n")[2].partition("\n## ")[0]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in section.splitlines() if line.startswith("|")]
    place = rows[0].index(backend)
    return {row[0]: row[place] for row in rows[2:]}


def rules(backend: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, backend],
        env=os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "backend",
    ["cpu", pytest.param("xla", marks=needs_xla), pytest.param("cuda", marks=pytest.mark.gpu)],
)
def test_the_table_of_autocast_rules_is_what_happens(backend: str) -> None:
    assert rules(backend) == table(backend)
