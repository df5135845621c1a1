"""The step guard, the check that a batch is divided, and the gradients that are our own: on two XLA devices."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bits.xla_record import BACKWARD, Call, first_difference

PROGRAM = Path(__file__).with_name("xla_worker.py")
needs_xla = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("watch") / "told.json"
    environment = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, PROGRAM, out],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def line(mark: str) -> str:
    """Where the worker's source says HERE `mark`."""
    lines = PROGRAM.read_text().splitlines()
    number = next(n for n, text in enumerate(lines, start=1) if text.endswith(f"# HERE {mark}"))
    return f"tests/bits/xla_worker.py:{number} "


@needs_xla
@pytest.mark.parametrize("strict", ["False", "True"])
@pytest.mark.parametrize("case", ["alike", "two calls"])
def test_steps_that_are_alike_are_not_spoken_of(told: dict[str, Any], case: str, strict: str) -> None:
    assert told[case][strict] == {"said": [], "error": None, "number": 7}


CHANGES = {
    "exponent": ("1 graph compiled anew", "aten.pow", ", 5.1 -> "),
    "operation": ("1 graph compiled anew", "aten.relu", "where aten.sigmoid"),
    "read": ("1 value read on the host", "aten._local_scalar_dense", "reads the host"),
    "copy": ("1 value read on the host", "aten._to_copy", "reads the host"),
    "fallback": ("aten::nonzero run on the host", "aten.nonzero", "XLA has no such operation"),
    "backward": ("1 graph compiled anew", "aten.pow", ", 5.1 -> "),
}


@needs_xla
@pytest.mark.parametrize("case", CHANGES)
def test_a_run_is_told_once_what_changed_and_on_which_line(told: dict[str, Any], case: str) -> None:
    found = told[case]["False"]
    assert found["error"] is None
    assert found["number"] == 7, "a run goes on"
    assert len(found["said"]) == 1, found["said"]
    counted, operation, change = CHANGES[case]
    for part in ("step 4: ", counted, operation, change, line(case)):
        assert part in found["said"][0], part


@needs_xla
@pytest.mark.parametrize("case", CHANGES)
def test_a_strict_step_raises_where_it_happens(told: dict[str, Any], case: str) -> None:
    found = told[case]["True"]
    assert found["said"] == []
    assert found["number"] == 4, "the first of the changed ones"
    assert found["error"].startswith("StepChanged: ")
    assert line(case) in found["error"]


@needs_xla
def test_the_shape_that_changed_is_named(told: dict[str, Any]) -> None:
    (text,) = told["shape"]["False"]["said"]
    assert text.startswith("step 4: 1 graph compiled anew; x [4, 3] -> [6, 3]. ")
    assert told["shape"]["True"]["error"].endswith("; x [4, 5] -> [6, 5]")


@needs_xla
def test_what_comes_once_is_told_without_a_line(told: dict[str, Any]) -> None:
    (text,) = told["once"]["False"]["said"]
    assert "step 4: 1 graph compiled anew; the two updates behind it are alike" in text
    assert line("once") in told["once"]["True"]["error"]


@needs_xla
def test_every_tensor_of_a_batch_is_divided_or_the_step_does_not_start(told: dict[str, Any]) -> None:
    assert told["feed"] == {
        "only_images": "label was to be laid out as {devices=[2] over the devices and is not",
        "replicated": "image was to be laid out as {devices=[2,1] over the devices and is {replicated}",
    }


@needs_xla
def test_bf16_sums_need_bf16_steps(told: dict[str, Any]) -> None:
    assert told["refused"].startswith("run.reduce_dtype bf16 needs run.precision bf16 on XLA")


@needs_xla
def test_gradients_of_convolutions_and_linear_layers_are_those_of_the_cpu(told: dict[str, Any]) -> None:
    assert set(told["gradients"]) > {"plain", "strided", "grouped", "depthwise", "linear"}
    assert max(told["gradients"].values()) < 1e-5, told["gradients"]


def call(op: str, *values: object, at: str = "a.py:1 (f)") -> Call:
    return Call(op, values, at)


def test_the_difference_that_makes_another_graph_is_named_first() -> None:
    before = [call("mul", 0.3), call("add", 0.5), call("sum", "float32[4]")]
    assert first_difference(before, list(before)) is None
    assert first_difference(before, [call("mul", 0.4), *before[1:]]) == "mul at a.py:1 (f): 0.3 -> 0.4"
    both = [call("mul", 0.4), call("add", 1.0), before[2]]
    assert first_difference(before, both) == "add at a.py:1 (f): 0.5 -> 1.0 (and 1 more)"
    shape = [call("mul", 0.4), call("add", 1.0), call("sum", "float32[8]", at=BACKWARD)]
    assert first_difference(before, shape) == f"sum at {BACKWARD}: float32[4] -> float32[8]"
    assert first_difference(before, [*before, call("exp")]) == "it does exp at a.py:1 (f)"
    assert first_difference(before, before[:2]) == "it no longer does sum at a.py:1 (f)"
    assert first_difference(before, [call("div", 0.3), *before[1:]]) == (
        "div at a.py:1 (f) where mul was, at a.py:1 (f)"
    )
