"""Rows of a global batch over hosts, and devices that a runtime numbers as it likes."""

import random

import pytest
import torch

from bits.division import Division, device_order


@pytest.mark.parametrize(("world_size", "num_devices"), [(1, 1), (1, 8), (2, 4), (4, 4), (8, 2)])
def test_every_row_is_one_process_s_and_lies_on_its_devices(world_size: int, num_devices: int) -> None:
    batch = torch.arange(3 * world_size * num_devices)
    divisions = [Division(rank, world_size, num_devices) for rank in range(world_size)]
    assert torch.cat([division.own(batch) for division in divisions]).tolist() == batch.tolist()
    shares = [
        tuple(part.tolist()) for part in batch.chunk(divisions[0].num_replicas)
    ]  # one a device, in order
    for rank, division in enumerate(divisions):
        own = [tuple(part.tolist()) for part in division.own(batch).chunk(num_devices)]
        assert own == shares[rank * num_devices : (rank + 1) * num_devices]


def test_a_batch_that_does_not_divide_over_the_devices_of_a_process() -> None:
    division = Division(1, 2, 4)
    division.check(8)
    with pytest.raises(ValueError, match=r"batch of 6 is not divisible by 4 devices; change run\.batch_size"):
        division.check(6)


def test_rows_that_do_not_divide_over_processes_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="7 rows of 2 processes"):
        Division(0, 2, 4).rows(7)


def test_devices_come_process_by_process_whatever_their_numbers() -> None:
    owners = [(1, 1), (0, 0), (1, 0), (0, 1)]
    assert device_order(owners) == [1, 3, 2, 0]
    owners = [(process, place) for process in range(4) for place in range(8)]
    random.Random(0).shuffle(owners)
    assert [owners[device] for device in device_order(owners)] == sorted(owners)


@pytest.mark.parametrize(
    "owners", [[(0, 0), (0, 1), (1, 0)], [(0, 0), (0, 1), (0, 2), (1, 0)], [(0, 0), (2, 0)]]
)
def test_processes_with_other_numbers_of_devices_are_refused(owners: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="each must drive as many as the others") as caught:
        device_order(owners)
    assert "\n" not in str(caught.value)
