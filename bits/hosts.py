"""What the processes of several hosts say to each other where the devices' own program cannot (XLA on pods).

Numbers of the host, such as whether somebody asked to stop, go through gloo: under SPMD there is one program over all
devices, whose collectives see one tensor for all, not a number for each process.
"""

import torch
import torch.distributed as dist

from bits.quiet import quiet_stdout


class Hosts:
    """The `world_size` processes of a run; alone, there is nobody to ask."""

    def __init__(self, *, rank: int, world_size: int, meet: str) -> None:
        """`meet`: where they find each other, as torch.distributed's init_method; all of them have to come."""
        self.rank, self.world_size = rank, world_size
        if world_size == 1 or dist.is_initialized():
            return
        with quiet_stdout():
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)

    def agree(self, value: int) -> int:
        """Largest `value` over processes."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def barrier(self) -> None:
        """Waits until all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leaves; a second call does nothing."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
