"""A small step through the real TPU compiler. Needs its environment: made on first use, from the network."""

from pathlib import Path
from typing import Any

import pytest

from engine.tpu.environment import open_environment
from engine.tpu.job import Order, compile_step
from engine.tpu.topology import find_topology

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[3] / "recipes" / "quickstart" / "cnn_clean.yaml"


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    try:
        open_environment()
    except ValueError as error:
        pytest.skip(str(error))
    order = Order(
        recipe=RECIPE,
        words=["run.batch_size=128", "run.precision=bf16"],
        topology=find_topology("v5e:2x2"),
        batch_per_device=32,
        timeout_s=500.0,
    )
    try:
        return compile_step(order)
    except ValueError as error:
        if "another tpu-check" not in str(error):
            raise
        pytest.skip(str(error))


def test_it_compiles_with_figures_of_one_device(answer: dict[str, Any]) -> None:
    assert answer["ok"], answer["error"]
    assert 0 < answer["flops"] < 1e12
    assert 0 < answer["memory"]["temp"] < 1 << 30
    assert 1 << 20 < answer["host_peak_bytes"] < 1 << 34
    assert answer["versions"].keys() >= {"torch_xla", "jax", "libtpu"}


def test_state_is_donated(answer: dict[str, Any]) -> None:
    assert answer["donated"] == answer["state_tensors"] > 50
    assert answer["memory"]["alias"] > 0.9 * answer["memory"]["output"]
    head = Path(answer["hlo"]).read_text().partition("\n")[0]
    assert head.count("may-alias") == answer["donated"]


def test_it_is_divided_over_devices(answer: dict[str, Any]) -> None:
    program = Path(answer["hlo"]).read_text()
    assert "num_partitions=4" in program
    assert "all-reduce" in program
    assert "u8[32,3,32,32]" in program  # a quarter of the images
    assert "u8[128,3,32,32]" not in program
