"""Names of topologies."""

import pytest

from engine.tpu.chips import CHIPS
from engine.tpu.topology import SHAPES, find_topology


@pytest.mark.parametrize(
    ("name", "devices", "config"),
    [
        ("v3:2x2", 8, "default"),  # two devices a chip
        ("v4:2x2x1", 4, "megacore"),  # two cores, one device
        ("v5e:2x4", 8, "default"),
        ("v5p:2x2x2", 8, "default"),
        ("v6e:1x1", 1, "default"),
    ],
)
def test_devices_and_config(name: str, devices: int, config: str) -> None:
    found = find_topology(name)
    assert (found.name, found.num_devices, found.config) == (name, devices, config)
    assert found.chip == name.partition(":")[0]


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:3x5", "v5e:2x2x1", "v4:2x2", "v7:2x2", "", "v5litepod-8", "V5E:2x4"]
)
def test_others_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="unknown TPU topology") as refused:
        find_topology(name)
    line = str(refused.value)
    assert repr(name) in line
    assert "\n" not in line
    assert all(f"{chip}:{shapes[0]}" in line for chip, shapes in SHAPES.items())


def test_every_topology_has_a_chip_with_figures() -> None:
    assert set(SHAPES) == set(CHIPS)
    for chip, shapes in SHAPES.items():
        for shape in shapes:
            assert 1 <= find_topology(f"{chip}:{shape}").num_devices <= 64
