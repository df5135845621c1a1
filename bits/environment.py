"""The device protocol: everything a training or evaluation needs to know about where it runs.

Two backends implement it: `accelerated.py` (cpu and cuda through accelerate) and `xla.py` (TPU and XLA:CPU through
torch_xla); `tpu.py`, for PyTorch's native TPU device, is an experiment. The engine never asks which one it has:
needing to would mean that a verb is missing here. A new backend is one file that passes the conformance suite in
tests/bits/test_conformance.py.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16", "fp16"]
ReduceDtype = Literal["float32", "bf16"]
Clip = Callable[[nn.Module], None]
"""Changes gradients in place, on the device and without a host read."""
Step = Callable[[Any], Any]
"""A (nested) NamedTuple of tensors to one like it."""


class StepWatch(Protocol):
    """Looks after one loop of steps that are to be alike: the same graphs, nothing read back, nothing on the host."""

    def step(self, tensors: Mapping[str, Tensor], *, at: str) -> AbstractContextManager[None]:
        """Around one call of the step; `tensors` are what it was fed, `at` says which one it is."""


class Unwatched:
    """The `StepWatch` of backends that run operations one at a time."""

    def step(self, tensors: Mapping[str, Tensor], *, at: str) -> AbstractContextManager[None]:
        return nullcontext()


class Environment(Protocol):
    """One process's view of the machine: its device(s), its rank, and the collectives."""

    backend: str  # "cpu", "cuda", "xla" or "tpu"
    device: torch.device
    precision: Precision
    rank: int  # of this process
    world_size: int  # number of processes
    num_devices: int  # devices driven by this process (more than one only under XLA SPMD)
    parts: int  # tensors that a global batch is: one a process, or one for all of them under XLA SPMD
    spread: int  # devices that such a tensor is divided over; parts * spread are all devices
    native_batch_norm: bool  # whether the backend's own BatchNorm keeps torch's running statistics
    fused_attention: bool  # whether torch's attention is one kernel that keeps no T x T matrix
    compiles: bool  # whether each new shape of a step costs a graph

    def place(self, module: nn.Module) -> nn.Module:
        """Moves `module` to the device, replicated; returns it (unwrapped)."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The forward for weight updates (DDP where there are several processes). Attacks use the plain module."""

    def feed(self, tensors: Mapping[str, Tensor], *, split: bool = True) -> dict[str, Tensor]:
        """Host to device, the only place where it happens. `split`: these are rows of this process, divided over its
        devices, which is checked (ValueError if they cannot be); where `parts` is 1 the result has the rows of all
        processes, in the order of ranks. Otherwise each device gets the whole tensor, equal on all processes."""

    def own(self, tensor: Tensor) -> Tensor:
        """The rows that this process has fed, of a tensor with a row for each that was fed; device or host."""

    def pin(self, memory: Tensor) -> Callable[[], None]:
        """Page-locks host memory that batches come from, so that `feed` need not wait for its copy; returns what
        undoes it. Nothing to do where the device is the host, or copies for itself."""

    def autocast(self) -> AbstractContextManager[None]:
        """Runs matrix work in `precision` (a null context in float32)."""

    def recompute(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """`module(*inputs)`, whose inner tensors are made again in the backward pass instead of being kept, with the
        same random numbers and under the same autocast. Also where the backward pass is for the inputs alone."""

    def seed(self, value: int) -> None:
        """Seeds the device generator (dropout, drop-path): called once a step with a pure function of the step."""

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Around forward and backward of an inner micro-step: gradients are not reduced there."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, scaled where fp16 needs it."""

    def apply(self, optimizer: torch.optim.Optimizer, module: nn.Module, *, clip: Clip | None) -> None:
        """Unscale, `clip(module)`, update, clear the gradients, make running statistics equal on all processes."""

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over `parts`, as a new tensor: what was summed over a fed batch becomes the sum over the global batch.
        Not differentiable."""

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """The same sum, such that autograd can pass through (global BatchNorm statistics)."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenation over `parts` along axis 0: of rows of a fed batch those of the global batch, in rank order;
        shapes must be equal."""

    def agree(self, value: int) -> int:
        """Largest `value` over processes. Host read: at report boundaries, and between the batches of an
        evaluation."""

    def cut(self) -> None:
        """Ends the lazy graph (nothing to do where operations run at once)."""

    def repeated(self, step: Step) -> Step:
        """`step` for many calls, each followed by `cut`: the same values, on XLA without being traced at each call.
        Weights and whatever else it reads may be taken as they are at its first call."""

    def watch(self, *, calls: int, warn: Callable[[str], None]) -> StepWatch:
        """A guard for one loop whose update takes `calls` calls of a step: after two updates a step that compiles,
        reads the host or falls back to it is told to `warn`, once, with the source line and what changed. An error
        with STRICT_STEPS=1 in the environment."""

    def later(self, tensors: Mapping[str, Tensor], fn: Callable[[dict[str, Tensor]], None]) -> None:
        """Copies `tensors` now; runs `fn` on host copies later, in order. Its exception surfaces at the next call."""

    def flush(self) -> None:
        """Runs everything `later` holds back. Before every checkpoint and exit."""

    def barrier(self) -> None:
        """Waits until all processes are here."""

    def counters(self) -> dict[str, int]:
        """Since start: `compiles` and their `compile_ms`, `executes`, `host_reads`, `fallbacks` (0 where nothing
        compiles)."""

    def peak_memory(self) -> tuple[int, str]:
        """Most bytes that were in use so far, and of what: "device memory", or "host memory" of this process."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the backend itself must remember over a restart (the fp16 loss scale)."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

    def close(self) -> None:
        """Flushes and leaves the process group."""


def open_environment(
    backend: Literal["cpu", "cuda", "auto", "xla", "tpu"],
    *,
    precision: Precision = "float32",
    world_size: int | None = None,
    num_devices: int = 1,
    deterministic: bool = False,
    reduce_dtype: ReduceDtype = "float32",
) -> Environment:
    """The environment of this process. `world_size` is the number of processes asked for: anything else found is
    an error, because a launcher that starts fewer processes than asked changes the training without a word.
    `reduce_dtype`: that of weight gradients while they are summed over devices; bf16 halves what travels."""
    module = import_module({"xla": "bits.xla", "tpu": "bits.tpu"}.get(backend, "bits.accelerated"))
    environment = module.open_environment(
        backend,
        precision=precision,
        num_devices=num_devices,
        deterministic=deterministic,
        reduce_dtype=reduce_dtype,
    )
    if world_size is not None and environment.world_size != world_size:
        found = environment.world_size
        environment.close()
        remedy = "`launch_gpu.py --num-processes N`, torchrun or accelerate launch"
        if backend == "xla":
            remedy = "`launch_xla.py --num-hosts N` on every host of a pod of N, the same line at once"
        raise ValueError(f"{world_size} processes were asked for and {found} found; start them with {remedy}")
    return cast(Environment, environment)
