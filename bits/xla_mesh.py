"""The devices of all hosts as one row, and how a host's rows of a batch enter them.

torch_xla 2.9 puts the i-th part of what a host sends on the i-th device of that host, wherever this device stands among
all of them; a row's place in the batch that everybody sees is that of its device in the mesh. Device numbers follow no
rule on a pod, so the hosts first tell each other whose devices are whose, and the mesh is laid out by that.
"""

import numpy as np
import torch
import torch_xla
import torch_xla.core.xla_model as xla_model
import torch_xla.distributed.spmd as spmd
import torch_xla.distributed.xla_backend  # makes MEET known to torch.distributed
import torch_xla.runtime as runtime
from torch import Tensor

from bits.division import Division, device_order

MEET = "xla://"  # the first host's address, which the runtime knows
AXIS = "data"


def mesh_of(division: Division) -> spmd.Mesh:
    """All devices, those of a process side by side, in the order of ranks. ValueError where they are not what
    `division` says."""
    found = runtime.global_runtime_device_count()
    if found != division.num_replicas:
        raise ValueError(
            f"{division.world_size} processes of {division.num_devices} devices are {division.num_replicas} and the "
            f"runtime has {found}; each process must drive as many as the others"
        )
    mesh = _row(list(range(found)))
    if division.world_size == 1:
        return mesh
    mine = torch.tensor([[division.rank, place] for place in range(division.num_devices)])
    # Every process reads it: putting it together is a program of all devices.
    owners = enter(mine, mesh).cpu().tolist()
    return _row(device_order([(process, place) for process, place in owners]))


def _row(devices: list[int]) -> spmd.Mesh:
    return spmd.Mesh(np.array(devices), (len(devices),), (AXIS,))


def enter(tensor: Tensor, mesh: spmd.Mesh) -> Tensor:
    """This process's rows, divided over its devices: the tensor of all processes' rows."""
    spec = spmd.ShardingSpec(mesh, (AXIS,) + (None,) * (tensor.dim() - 1), minibatch=True)
    entered: list[Tensor] = xla_model.send_cpu_data_to_device([tensor], torch_xla.device(), spec)
    assert entered[0].device.type == "xla", (
        f"{type(tensor)} was left on the host"
    )  # it takes plain tensors only
    return entered[0]
