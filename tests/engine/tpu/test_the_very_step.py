"""What is exported is the program that a training runs, operation by operation."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("step_worker.py")


@pytest.mark.parametrize(
    "words",
    [
        # PGD-1, norms with running statistics, the guard that puts them back, and an average of it all
        ("cnn_adv", "optim.ema=0.99"),
        pytest.param(
            ("vit_adv", "run.precision=bf16", "optim.clip_norm=1.0", "objective.mixup=0.8"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_has_the_operations_of_a_run(
    words: tuple[str, ...], process_environment: Callable[..., dict[str, str]]
) -> None:
    recipe, *changes = words
    done = subprocess.run(
        [sys.executable, str(WORKER), f"recipes/quickstart/{recipe}.yaml", "run.batch_size=32", *changes],
        env=process_environment(),
        cwd=WORKER.parents[3],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["exported"] == found["run"]
    assert found["run"]["convolution"] > 3
