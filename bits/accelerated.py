"""The cpu and cuda backend: processes, devices and DDP through accelerate. The only file that imports it.

Accelerate prepares the model and nothing else: its prepared scheduler steps world-size times and its loader
shards again. The fp16 scaler is torch's own, because attacks call the plain module, which accelerate's autocast
wrapper would not cover.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.utils.checkpoint import checkpoint

from bits.environment import Clip, Precision, ReduceDtype, Step, StepWatch, Unwatched
from bits.later import LaterQueue, copies
from bits.pinned import PinnedFeed, page_lock
from bits.processor import peak_resident
from bits.quiet import quiet_stdout

# Accelerate takes XLA whenever torch_xla is installed, even on a CUDA machine, unless told otherwise before import.
os.environ.setdefault("USE_TORCH_XLA", "0")
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs


def open_environment(
    backend: str,
    *,
    precision: Precision,
    num_devices: int,
    deterministic: bool,
    reduce_dtype: ReduceDtype = "float32",
) -> "AcceleratedEnvironment":
    """ValueError when cuda is asked for and missing, or fp16 is asked for on the cpu."""
    if backend == "auto":
        backend = "cuda" if torch.cuda.is_available() else "cpu"
    if backend == "cuda" and not torch.cuda.is_available():
        raise ValueError("backend cuda: this machine has no CUDA device; use --cpu")
    if precision == "fp16" and backend == "cpu":
        raise ValueError("run.precision fp16 needs CUDA; on the cpu use bf16 or float32")
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if backend == "cuda" and local_processes > torch.cuda.device_count():
        raise ValueError(
            f"{local_processes} processes were asked for and this machine has {torch.cuda.device_count()} CUDA "
            f"devices; use --num-processes {torch.cuda.device_count()}"
        )
    if num_devices != 1:
        raise ValueError(f"{num_devices} devices in one process needs XLA; here use --num-processes")
    return AcceleratedEnvironment(
        backend, precision=precision, deterministic=deterministic, reduce_dtype=reduce_dtype
    )


def _check_accelerator(accelerator: Accelerator, backend: str) -> None:
    """ValueError where the environment or a config file of accelerate asks for what this backend does not do."""
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU") or accelerator.device.type != backend:
        raise ValueError(
            f"accelerate set up {kind} on {accelerator.device} and {backend} was asked for; unset its ACCELERATE_* "
            "variables and config, which this toolkit's recipes replace"
        )


class AcceleratedEnvironment:
    """`bits.environment.Environment` for cpu (gloo) and cuda (nccl)."""

    num_devices = 1
    spread = 1
    native_batch_norm = True
    fused_attention = True
    compiles = False

    def __init__(
        self,
        backend: str,
        *,
        precision: Precision,
        deterministic: bool,
        reduce_dtype: ReduceDtype = "float32",
    ) -> None:
        ddp = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # Switches off that DDP lays out its buckets anew after the first backward: with three or more ranks a
            # sum depends on its place in the bucket, so a resumed run's first update would differ from a run's that
            # was never stopped. Costs a walk over the graph, hence only where bits are promised.
            find_unused_parameters=backend == "cpu" or deterministic,
        )
        self._wrapped: dict[nn.Module, nn.Module] = {}
        self._reduce_dtype = reduce_dtype
        with quiet_stdout():
            # "no", or accelerate would take ACCELERATE_MIXED_PRECISION and patch the plain module's forward with
            # autocast, that of attacks and of float32 verdicts.
            self._accelerator = Accelerator(cpu=backend == "cpu", mixed_precision="no", kwargs_handlers=[ddp])
        _check_accelerator(self._accelerator, backend)
        self.backend = backend
        self.precision = precision
        self.rank = self._accelerator.process_index
        self.world_size = self.parts = self._accelerator.num_processes
        self.device = torch.device("cpu") if backend == "cpu" else self._accelerator.device
        self._dtype = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._scaler = GradScaler("cuda") if precision == "fp16" else None
        # On the cpu a copy is a clone and there is nothing to wait for; on cuda one report may stay in flight.
        self._later = LaterQueue(depth=0 if backend == "cpu" else 1)
        self._fed = PinnedFeed()
        if backend == "cuda":
            # cuDNN takes TF32 by default; "float32" here means IEEE float32.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def place(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        # Kept here: DDP's hooks die with the wrapper, and gradients would then stay local without a word.
        if module not in self._wrapped:
            self._wrapped[module] = wrapped = self._accelerator.prepare_model(module)
            if self._reduce_dtype == "bf16" and isinstance(wrapped, nn.parallel.DistributedDataParallel):
                wrapped.register_comm_hook(None, bf16_compress_hook)
        return self._wrapped[module]

    def feed(self, tensors: Mapping[str, Tensor], *, split: bool = True) -> dict[str, Tensor]:
        if self.backend == "cpu":
            return dict(tensors)
        return self._fed.feed(tensors, self.device)

    def pin(self, memory: Tensor) -> Callable[[], None]:
        return (lambda: None) if self.backend == "cpu" else page_lock(memory)

    def own(self, tensor: Tensor) -> Tensor:
        return tensor

    def autocast(self) -> AbstractContextManager[None]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def recompute(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        out: Tensor = checkpoint(module, *inputs, use_reentrant=False)
        return out

    def seed(self, value: int) -> None:
        # Ranks hold different samples, so they need different dropout masks.
        torch.manual_seed((value * 1_000_003 + self.rank) % (1 << 63))

    @contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        with wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext():
            yield

    def backward(self, loss: Tensor) -> None:
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def apply(self, optimizer: torch.optim.Optimizer, module: nn.Module, *, clip: Clip | None) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if clip is not None:
            clip(module)
        if self._scaler is not None:
            self._scaler.step(optimizer)
            self._scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._average_buffers(module)

    @torch.no_grad()
    def _average_buffers(self, module: nn.Module) -> None:
        # Of modules that train. In float64, where the mean of n equal float32 values is that value: an update that was
        # left out must leave them as they were.
        moving = [part for part in module.modules() if part.training]
        statistics = [
            getattr(part, name, None) for part in moving for name in ("running_mean", "running_var")
        ]
        buffers = [buffer for buffer in statistics if isinstance(buffer, Tensor)]
        if self.world_size == 1 or not buffers:
            return
        # One collective for all of them: BatchNorm networks hold a hundred small buffers.
        flat = torch.cat([b.reshape(-1) for b in buffers]).double()
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [b.numel() for b in buffers])
        for buffer, mean in zip(buffers, parts, strict=True):
            buffer.copy_(mean.view_as(buffer))

    def reduce(self, tensor: Tensor) -> Tensor:
        result = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(result)
        return result

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        if self.world_size == 1:
            return tensor
        from torch.distributed.nn.functional import all_reduce

        result: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
        return result

    def gather(self, tensor: Tensor) -> Tensor:
        if self.world_size == 1:
            return tensor.detach().clone()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def agree(self, value: int) -> int:
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def cut(self) -> None:
        """Nothing to end: operations run at once."""

    def repeated(self, step: Step) -> Step:
        return step

    def watch(self, *, calls: int, warn: Callable[[str], None]) -> StepWatch:
        return Unwatched()

    def later(self, tensors: Mapping[str, Tensor], fn: Callable[[dict[str, Tensor]], None]) -> None:
        if self.backend == "cpu":
            held = copies(tensors)
            self._later.put(lambda: held, fn)
            return
        pinned = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for n, t in tensors.items()}
        for name, tensor in tensors.items():
            pinned[name].copy_(tensor.detach(), non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()  # type: ignore[no-untyped-call]

        def fetch() -> dict[str, Tensor]:
            done.synchronize()
            return pinned

        self._later.put(fetch, fn)

    def flush(self) -> None:
        self._later.flush()

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def counters(self) -> dict[str, int]:
        return {"compiles": 0, "compile_ms": 0, "executes": 0, "host_reads": 0, "fallbacks": 0}

    def peak_memory(self) -> tuple[int, str]:
        if self.backend == "cpu":
            return peak_resident(), "host memory"
        return torch.cuda.max_memory_allocated(self.device), "device memory"

    def state_dict(self) -> dict[str, Tensor]:
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self._scaler is not None and state:
            ints = {"growth_interval", "_growth_tracker"}
            values = {n: int(v.item()) if n in ints else float(v.item()) for n, v in state.items()}
            self._scaler.load_state_dict(values)

    def close(self) -> None:
        self.flush()
        if self.world_size > 1 and dist.is_initialized():
            for wrapped in self._wrapped.values():
                _keep_for_ever(wrapped)
            dist.destroy_process_group()


def _keep_for_ever(module: nn.Module) -> None:
    """Freeing DDP frees its process group, which joins a gloo thread while Python's lock is held; that thread may be
    waiting for the lock to free a tensor (seen with torch 2.9: a rank that never ended). The process ends soon."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
