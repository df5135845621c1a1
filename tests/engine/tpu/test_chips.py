"""The table of chips: complete, per device, and asked by topology."""

import pytest

from engine.tpu.chips import CHIPS, GIB, find_chip, num_chips


def test_the_table_is_per_device() -> None:
    assert {name: chip.hbm_gib for name, chip in CHIPS.items()} == {
        "v3": 16,  # a core
        "v4": 32,
        "v5e": 16,
        "v5p": 95,
        "v6e": 32,
    }
    assert (CHIPS["v3"].tflops, CHIPS["v3"].gb_per_s) == (61.5, 450)
    assert (CHIPS["v5e"].tflops, CHIPS["v5e"].gb_per_s) == (197, 819)
    for chip in CHIPS.values():
        assert chip.source.startswith("https://")
        assert 0 < chip.usable_bytes < chip.hbm_bytes == chip.hbm_gib * GIB


@pytest.mark.parametrize(
    ("topology", "chip", "number"),
    [("v5e:2x4", "v5e", 8), ("v4:2x2x1", "v4", 4), ("v3:2x2", "v3", 4), ("v6e:16x16", "v6e", 256)],
)
def test_a_topology_names_its_chip(topology: str, chip: str, number: int) -> None:
    assert find_chip(topology).name == chip
    assert num_chips(topology) == number


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:", "v5e:2", "v5e:2x", "v5e-8", ""])
def test_another_topology_is_refused_with_the_known_ones(topology: str) -> None:
    with pytest.raises(ValueError, match=r"unknown TPU topology .* v3, v4, v5e, v5p, v6e"):
        find_chip(topology)


def test_cores_are_told_from_chips() -> None:
    assert CHIPS["v5e"].note("v5e:2x4", 8) is None
    assert CHIPS["v4"].note("v4:2x2x1", 4) is None
    assert "one of the chip's two cores" in str(CHIPS["v4"].note("v4:2x2x1", 8))
    assert "one of the chip's 2 cores" in str(CHIPS["v3"].note("v3:2x2", 8))
