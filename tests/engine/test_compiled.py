"""What the XLA compiler makes of a train step on four devices: read in the text of its modules.

One graph from the first update on, state in place, gradients reduced in the dtype that was asked for, products of
float32 in float32, and with ghost groups that follow the devices no activation that travels.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PROGRAM = Path(__file__).with_name("compiled_worker.py")
GHOST, FULL, HALF = "ghost:4,float32,float32", "local,bf16,float32", "local,bf16,bf16"
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
# Elements of what the step of the worker may reduce: weights of 8x3x3x3, 8x1x3x3, 12x8 and 5x12, biases, running
# statistics, sums. An activation has 4 images of 8 channels and 8x8 pixels.
LARGEST_WEIGHT, ACTIVATION = 216, 4 * 8 * 64

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)


class Op(NamedTuple):
    """One instruction of a module."""

    name: str
    dtype: str
    elements: int
    line: str


def ops(text: str) -> list[Op]:
    found = re.finditer(r"^.* = (\w+)\[([\d,]*)\][^ ]* ([\w-]+)\(.*$", text, flags=re.MULTILINE)
    return [
        Op(m[3].removesuffix("-start"), m[1], math.prod(int(n) for n in m[2].split(",") if n), m[0])
        for m in found
    ]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The worker's findings, dumps in place of their paths: {case: {phase: {kind of dump: text}}}."""
    folder = tmp_path_factory.mktemp("compiled")
    flags = (
        "--xla_backend_optimization_level=0 --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=spmd-partitioning"
    )
    environment = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": "4",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"{flags} --xla_dump_to={folder / 'dumps'}",
    }
    words = [PROGRAM, "4", folder / "dumps", folder / "found.json", GHOST, FULL, HALF]
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    kinds = {
        "traced": ".before_optimizations.txt",
        "divided": ".after_spmd-partitioning.before_pipeline-end.txt",
        "final": ".cpu_after_optimizations.txt",
    }
    for case in found.values():
        for phase in ("train", "eval"):
            paths = case.pop(phase)
            case[phase] = {
                kind: [Path(p).read_text() for p in paths if p.endswith(end)] for kind, end in kinds.items()
            }
    return found


@pytest.mark.parametrize("case", [GHOST, FULL, HALF])
def test_the_first_update_runs_the_graph_of_all_the_others(compiled: dict[str, Any], case: str) -> None:
    assert len(compiled[case]["train"]["traced"]) == 1
    assert len({counters["compiles"] for counters in compiled[case]["counters"]}) == 1
    assert {counters["fallbacks"] for counters in compiled[case]["counters"]} == {0}


@pytest.mark.parametrize("case", [GHOST, FULL, HALF])
def test_every_tensor_of_the_state_is_written_in_place(compiled: dict[str, Any], case: str) -> None:
    header = compiled[case]["train"]["final"][0].splitlines()[0]
    aliased = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    assert compiled[case]["state_tensors"] > 50
    assert len(aliased) >= compiled[case]["state_tensors"]


@pytest.mark.parametrize("case", [GHOST, FULL, HALF])
def test_nothing_of_the_size_of_an_activation_travels(compiled: dict[str, Any], case: str) -> None:
    for kind in ("divided", "final"):
        found = [op for op in ops(compiled[case]["train"][kind][0]) if op.name in COLLECTIVES]
        assert {op.name for op in found} == {"all-reduce"}, sorted({op.line for op in found})
        assert max(op.elements for op in found) == LARGEST_WEIGHT < ACTIVATION


def reduced(compiled: dict[str, Any], case: str) -> list[str]:
    """The dtypes of what is reduced, as divided over devices: XLA:CPU itself sums bf16 in float32 afterwards."""
    return sorted(op.dtype for op in ops(compiled[case]["train"]["divided"][0]) if op.name == "all-reduce")


def test_gradients_are_summed_over_devices_in_the_dtype_that_was_asked_for(compiled: dict[str, Any]) -> None:
    assert set(reduced(compiled, GHOST)) == {"f32"}
    assert set(reduced(compiled, FULL)) == {"f32"}
    # The weights of two convolutions and two linear layers and their biases. Norms work in float32 under autocast.
    assert reduced(compiled, HALF).count("bf16") == 7
    assert len(reduced(compiled, HALF)) == len(reduced(compiled, FULL))


def products(text: str) -> list[Op]:
    return [op for op in ops(text) if op.name in ("dot", "convolution")]


@pytest.mark.parametrize("phase", ["train", "eval"])
def test_products_of_float32_are_made_in_float32(compiled: dict[str, Any], phase: str) -> None:
    found = products(compiled[GHOST][phase]["divided"][0])
    assert {op.dtype for op in found} == {"f32"}
    rounded = [op for op in found if "operand_precision={highest,highest}" not in op.line]
    # The weight of the depthwise convolution: see bits/xla_gradients.py.
    assert len(rounded) == (1 if phase == "train" else 0), [op.line for op in rounded]
    assert all("batch_group_count=8" in op.line or "feature_group_count=8" in op.line for op in rounded)
    assert len(found) > (15 if phase == "train" else 3)


def test_bf16_products_are_really_bf16(compiled: dict[str, Any]) -> None:
    half = products(compiled[HALF]["train"]["divided"][0])
    assert {op.dtype for op in half} == {"bf16"}
    full = [op for op in products(compiled[FULL]["train"]["divided"][0]) if op.dtype != "bf16"]
    # Those of the weights alone take bf16 numbers and give float32, in one pass: no precision is asked for.
    assert len(full) == 4
    assert not any("operand_precision" in op.line for op in full)


def test_a_verdict_is_float32_after_bf16_steps_too(compiled: dict[str, Any]) -> None:
    assert compiled[FULL]["eval"]["traced"] == [], "the graph of the float32 run's verdict served again"
