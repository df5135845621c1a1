"""EXPERIMENTAL: PyTorch's native TPU device (package torch_tpu 0.2, torch 2.11 to 2.15), the successor of torch_xla.

Not run on a TPU by us. It is written against the package's own modules: device "tpu" with autocast, process group
"tpu_dist", one process a chip. Operations run as torch's do elsewhere, so everything that c10d does is that of the cpu
and cuda backend; gradients are summed here and not by DDP, of which the package says nothing. The conformance suite
passes with the same class on the cpu with gloo, and asks the device where there is one (tests/bits/test_tpu.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, metadata

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bits.accelerated import AcceleratedEnvironment
from bits.environment import Precision, ReduceDtype
from bits.later import LaterQueue, copies
from bits.processes import is_worker
from bits.processor import peak_resident

DEVICE, PROCESS_GROUP = "tpu", "tpu_dist"
OLDEST_TORCH = (2, 11)


def missing() -> str:
    """What this device lacks here, in one line; empty when it can be used."""
    try:
        found = metadata.version("torch_tpu")
    except metadata.PackageNotFoundError:
        return (
            "package torch_tpu is not installed; make an environment of its own for it (it needs torch 2.11 or newer, "
            "which torch_xla does not go with), or use launch_xla.py"
        )
    version = tuple(int(part) for part in str(torch.__version__).split(".")[:2])
    if version < OLDEST_TORCH:
        return (
            f"torch_tpu {found} needs torch 2.11 or newer and {torch.__version__} is installed; update torch"
        )
    import_module("torch_tpu")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type != DEVICE:
        return f"torch_tpu {found} finds no TPU on this machine; is another process using it?"
    return ""


def prepare_launch(num_processes: int) -> None:
    """Sets what the processes of one machine must agree on, before any of them starts. ValueError without a TPU."""
    if reason := missing():
        raise ValueError(f"backend tpu: {reason}")
    torch.tpu.distributed.set_tpu_launch_env(nproc_per_node=num_processes)  # type: ignore[attr-defined]


def open_environment(
    backend: str,
    *,
    precision: Precision,
    num_devices: int,
    deterministic: bool,
    reduce_dtype: ReduceDtype = "float32",
) -> "TpuEnvironment":
    """ValueError when the package or the device is missing, or fp16 or several devices in one process are asked for."""
    assert backend == "tpu", backend
    if reason := missing():
        raise ValueError(f"backend tpu: {reason}")
    if precision == "fp16":
        raise ValueError("run.precision fp16 has no loss scaler on a TPU; use bf16 or float32")
    if num_devices != 1:
        raise ValueError(
            f"{num_devices} devices in one process needs launch_xla.py; here use --num-processes"
        )
    return TpuEnvironment(precision=precision, reduce_dtype=reduce_dtype)


class TpuEnvironment(AcceleratedEnvironment):
    """`bits.environment.Environment` for one TPU chip of one process."""

    compiles = True

    def __init__(self, *, precision: Precision, reduce_dtype: ReduceDtype) -> None:
        # Nothing of accelerate's: its Accelerator knows no such device.
        if is_worker() and not dist.is_initialized():
            dist.init_process_group(backend=PROCESS_GROUP)
        self.backend, self.precision = "tpu", precision
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = self.parts = dist.get_world_size() if dist.is_initialized() else 1
        self.device = torch.device(DEVICE)
        self._dtype = None if precision == "float32" else torch.bfloat16
        self._scaler = None
        self._wrapped = {}  # modules whose gradients are averaged
        self._is_inner = False  # in a micro-step that is not the last one of its update
        self._reduce_dtype = reduce_dtype
        self._later = LaterQueue(depth=1)
        # TPUs multiply float32 in bf16 unless told otherwise; torch_tpu takes this call for its own precision.
        torch.set_float32_matmul_precision("highest")

    def wrap(self, module: nn.Module) -> nn.Module:
        self._wrapped[module] = module
        return module

    def feed(self, tensors: Mapping[str, Tensor], *, split: bool = True) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def pin(self, memory: Tensor) -> Callable[[], None]:
        return lambda: None

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        self._is_inner = True
        try:
            yield
        finally:
            self._is_inner = False

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.world_size > 1 and not self._is_inner:
            self._average_gradients()

    @torch.no_grad()
    def _average_gradients(self) -> None:
        """Of all that backward passes have added by now: what was averaged before stays as it is."""
        parameters = [p for module in self._wrapped for p in module.parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) / self.world_size
        sent = flat.bfloat16() if self._reduce_dtype == "bf16" else flat
        dist.all_reduce(sent)
        parts = torch.split(sent.to(flat.dtype), [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def later(self, tensors: Mapping[str, Tensor], fn: Callable[[dict[str, Tensor]], None]) -> None:
        held = copies(tensors)
        self._later.put(lambda: {name: tensor.cpu() for name, tensor in held.items()}, fn)

    def peak_memory(self) -> tuple[int, str]:
        return peak_resident(), "host memory"

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        self.flush()
        if dist.is_initialized():
            dist.destroy_process_group()
