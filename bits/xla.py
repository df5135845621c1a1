"""The XLA backend: TPU, and XLA:CPU for development, through torch_xla 2.9. Only this file and bits/xla_*.py import it.

Several devices are driven by one process (SPMD): a batch enters divided over the devices, everything else is
replicated, and the compiler inserts the reductions. On a pod there is such a process on every host, and still one
program: each feeds its rows of the batch, all see one tensor. So `parts` is 1 whatever `world_size` is, a plain
BatchNorm sees the whole global batch, and `reduce` and `gather` have nothing left to do. Not run on a pod by us.

Measured facts behind the choices (torch_xla 2.9): `torch_xla.launch` with several cpu devices aborts and a process
group of backend xla silently has world size 1, hence SPMD; a graph is ended by `cut`, so copies and resets made
for a report are cut off at once, or they would join the next step's graph and make a second version of it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch_xla
import torch_xla.backends
import torch_xla.core.xla_model as xla_model
import torch_xla.debug.metrics as metrics
import torch_xla.distributed.spmd as spmd
import torch_xla.runtime as runtime
from torch import Tensor, nn

from bits.division import Division
from bits.environment import Clip, Precision, ReduceDtype, Step, StepWatch
from bits.hosts import Hosts
from bits.later import LaterQueue, copies
from bits.processes import is_worker
from bits.processor import peak_resident
from bits.xla_generator import seed
from bits.xla_gradients import install
from bits.xla_mesh import MEET, enter, mesh_of
from bits.xla_private import can_repeat, check_private
from bits.xla_recompute import recompute
from bits.xla_repeat import Repeated
from bits.xla_watch import XlaWatch, sync


def open_environment(
    backend: str,
    *,
    precision: Precision,
    num_devices: int,
    deterministic: bool,
    reduce_dtype: ReduceDtype = "float32",
) -> "XlaEnvironment":
    """ValueError when the devices asked for are not there, fp16 is asked for, or a float32 run is to sum gradients in
    bf16. XLA is deterministic as it is."""
    assert backend == "xla", backend
    if precision == "fp16":
        raise ValueError("run.precision fp16 has no loss scaler on XLA; use bf16 or float32")
    if precision == "float32" and reduce_dtype == "bf16":
        raise ValueError(
            "run.reduce_dtype bf16 needs run.precision bf16 on XLA, where gradients are summed as the backward pass "
            "makes them; use float32"
        )
    check_private()
    num_processes = runtime.process_count()
    check_started(num_processes)
    if num_processes * num_devices > 1 and not runtime.is_spmd():
        runtime.use_spmd()
    found = runtime.addressable_runtime_device_count()
    if found != num_devices:
        raise ValueError(
            f"{num_devices} XLA devices were asked for and {found} found; use --num-devices {found} "
            "(with PJRT_DEVICE=CPU launch_xla.py sets CPU_NUM_DEVICES by itself)"
        )
    install(reduce_float32=reduce_dtype == "float32")
    return XlaEnvironment(
        precision=precision,
        division=Division(rank=runtime.process_index(), world_size=num_processes, num_devices=num_devices),
    )


def check_started(num_processes: int) -> None:
    """ValueError where a launcher has started several processes that the runtime takes for as many runs."""
    if is_worker() and int(os.environ["WORLD_SIZE"]) != num_processes:
        raise ValueError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes and XLA counts {num_processes}: each would be a "
            "run of its own; start launch_xla.py without it, once on each host, for all devices of that host"
        )


class XlaEnvironment:
    """`bits.environment.Environment` for the XLA devices of this host, and of the others of a pod."""

    backend = "xla"
    parts = 1
    native_batch_norm = (
        False  # torch_xla 2.9 stores the biased variance in running_var; torch the unbiased one
    )
    fused_attention = False
    compiles = True

    def __init__(self, *, precision: Precision, division: Division) -> None:
        self.precision = precision
        self.division = division
        self.rank, self.world_size, self.num_devices = division
        self.spread = division.num_replicas
        self.device = torch_xla.device()
        self._mesh = mesh_of(division) if self.spread > 1 else None
        self._hosts = Hosts(rank=self.rank, world_size=self.world_size, meet=MEET)
        self._later = LaterQueue(depth=1)
        # TPUs multiply float32 in bf16 passes unless told otherwise; verdicts are float32 in every run.
        if torch_xla.backends.get_mat_mul_precision() != "highest":  # a second call would be warned of
            torch_xla.backends.set_mat_mul_precision("highest")

    def place(self, module: nn.Module) -> nn.Module:
        module = module.to(self.device)
        self.cut()  # or the transfer would be traced into the first step
        return module

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def feed(self, tensors: Mapping[str, Tensor], *, split: bool = True) -> dict[str, Tensor]:
        if self._mesh is None:
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}
        if split:
            for tensor in tensors.values():
                self.division.check(tensor.shape[0])
            fed = {name: enter(tensor, self._mesh) for name, tensor in tensors.items()}
        else:
            fed = {name: tensor.to(self.device) for name, tensor in tensors.items()}
            for tensor in fed.values():
                spmd.mark_sharding(tensor, self._mesh, (None,) * tensor.dim())
        self._check_sharded(fed, split=split)
        return fed

    def own(self, tensor: Tensor) -> Tensor:
        return self.division.own(tensor)

    def _check_sharded(self, fed: Mapping[str, Tensor], *, split: bool) -> None:
        """A label that every device holds whole beside images that are divided gives no error, and other gradients."""
        for name, tensor in fed.items():
            over = ",".join(map(str, (self.spread, *[1] * (tensor.dim() - 1))))
            wanted = f"{{devices=[{over}]" if split else "{replicated}"
            if not (found := torch_xla._XLAC._get_xla_sharding_spec(tensor)).startswith(wanted):
                raise RuntimeError(
                    f"{name} was to be laid out as {wanted} over the devices and is {found or 'not'}"
                )

    def pin(self, memory: Tensor) -> Callable[[], None]:
        return lambda: None  # `feed` copies before it returns

    def autocast(self) -> AbstractContextManager[None]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast("xla", dtype=torch.bfloat16)

    def recompute(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        return recompute(module, *inputs)

    def seed(self, value: int) -> None:
        seed(value % (1 << 31))

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        # The compiler places the reduction where the sum is first used, which is the update.
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def apply(self, optimizer: torch.optim.Optimizer, module: nn.Module, *, clip: Clip | None) -> None:
        if clip is not None:
            clip(module)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def agree(self, value: int) -> int:
        return self._hosts.agree(value)

    def cut(self) -> None:
        sync()

    def repeated(self, step: Step) -> Step:
        if self.world_size > 1 or not can_repeat():  # no host has the rows of all others' lanes
            return step
        return Repeated(step, feed=lambda tensor, split: self.feed({"x": tensor}, split=split)["x"])

    def watch(self, *, calls: int, warn: Callable[[str], None]) -> StepWatch:
        return XlaWatch(calls=calls, warn=warn)

    def later(self, tensors: Mapping[str, Tensor], fn: Callable[[dict[str, Tensor]], None]) -> None:
        held = copies(tensors)
        if self._mesh is not None:
            # Divided over devices, a copy would be put together at each read, by a graph that is compiled each time.
            for tensor in held.values():
                spmd.annotate_custom_sharding(tensor, self._mesh, (None,) * tensor.dim())
        self.cut()
        self._later.put(lambda: {name: tensor.cpu() for name, tensor in held.items()}, fn)

    def flush(self) -> None:
        self._later.flush()

    def barrier(self) -> None:
        sync(wait=True)
        self._hosts.barrier()

    def counters(self) -> dict[str, int]:
        compiles = metrics.metric_data("CompileTime")
        executes = metrics.metric_data("ExecuteTime") or metrics.metric_data("ExecuteReplicatedTime")
        reads = metrics.metric_data("TransferFromDeviceTime")
        names = [n for n in metrics.counter_names() if n.startswith("aten::")]
        return {
            "compiles": compiles[0] if compiles else 0,
            "compile_ms": int(compiles[1] / 1e6) if compiles else 0,  # kept in nanoseconds there
            "executes": executes[0] if executes else 0,
            "host_reads": reads[0] if reads else 0,
            "fallbacks": sum(metrics.counter_value(n) for n in names),
        }

    def peak_memory(self) -> tuple[int, str]:
        if runtime.device_type() == "CPU" or runtime.is_spmd():  # torch_xla asks none of several devices
            return peak_resident(), "host memory"
        found = xla_model.get_memory_info(self.device)
        return int(found.get("peak_bytes_used") or found["bytes_used"]), "device memory"

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        self.flush()
        self.barrier()
        self._hosts.close()
