"""Whose rows of a global batch are whose, where one program runs over the devices of several hosts (XLA on pods).

A fed batch is then one tensor over all devices, and every process sees the whole of it: sums over it are sums over all
processes already, and what is true of its images stands in rows that other processes have fed. Nothing here asks the
runtime, so it is the same arithmetic with and without a TPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Division(NamedTuple):
    """Of a batch over processes, in the order of their ranks, and over the devices of each."""

    rank: int
    world_size: int
    num_devices: int  # of each process

    @property
    def num_replicas(self) -> int:
        """Devices of all processes."""
        return self.world_size * self.num_devices

    def rows(self, num_rows: int) -> slice:
        """Those that this process feeds, of a batch of `num_rows` on all processes together."""
        assert num_rows % self.world_size == 0, f"{num_rows} rows of {self.world_size} processes"
        share = num_rows // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def own(self, tensor: Tensor) -> Tensor:
        """Those rows of `tensor`, whose axis 0 is the batch."""
        return tensor[self.rows(tensor.shape[0])]

    def check(self, num_rows: int) -> None:
        """ValueError where what this process feeds cannot be divided over its devices."""
        if num_rows % self.num_devices:
            raise ValueError(
                f"batch of {num_rows} is not divisible by {self.num_devices} devices; "
                "change run.batch_size or --num-devices"
            )


def device_order(owners: Sequence[tuple[int, int]]) -> list[int]:
    """The devices of all processes such that rows fed by a process lie together, in the order of ranks.

    `owners`: of each device, by its number among all, the process that drives it and its place among that one's
    devices. A runtime numbers devices as it likes: process 0 need not drive device 0, nor neighbours. ValueError where
    a process has other devices than the rest.
    """
    order = sorted(range(len(owners)), key=lambda device: owners[device])
    processes = [owners[device][0] for device in order]
    world_size = max(processes) + 1
    each = len(owners) // world_size
    wanted = [(process, place) for process in range(world_size) for place in range(each)]
    if [owners[device] for device in order] != wanted:
        counts = ", ".join(str(processes.count(process)) for process in range(world_size))
        raise ValueError(
            f"the processes drive {counts} devices; a batch is divided evenly, so each must drive as many as the others"
        )
    return order
