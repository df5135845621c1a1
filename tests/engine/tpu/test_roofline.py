"""The range of times a step could take."""

import pytest

from engine.tpu.chips import CHIPS
from engine.tpu.roofline import roofline


def test_the_range_goes_from_overlap_to_one_after_the_other() -> None:
    found = roofline(CHIPS["v5e"], flops=3.019e12, byte_counts=(90.9e9, 40e9), precision="bf16")
    assert found.compute_s == pytest.approx(3.019 / 197)
    assert found.low_s == pytest.approx(40 / 819)
    assert found.high_s == pytest.approx(3.019 / 197 + 90.9 / 819)
    assert found.bound == "memory"


def test_much_computing_on_few_bytes() -> None:
    found = roofline(CHIPS["v4"], flops=275e12, byte_counts=(12e9,), precision="bf16")
    assert (found.low_s, found.high_s) == (1.0, pytest.approx(1.01))
    assert found.bound == "compute"


def test_float32_may_take_several_products() -> None:
    found = roofline(CHIPS["v6e"], flops=918e12, byte_counts=(1e9,), precision="float32")
    assert found.low_s == 1.0
    assert found.high_s > 6.0
