"""A train step as StableHLO, for a compiler of other devices: recorded where its graphs would have run.

Nothing is executed: lazy tensors know shapes without values, and what a step starts from are placeholders that hold
no memory. The price: torch_xla 2.9 crashes (SIGSEGV) where a value is needed after all, by a read or by an operation
that is left to the host. So a process that records expects to die, and another one, with values, says of what.

What a step keeps is found as the runtime finds it, by looking at every tensor that is alive when a graph is cut. A
tensor that has changed in place is a result that may take its argument's memory: torch_xla decides that when it
runs a graph, so its StableHLO does not say it, and `Graph.donated` is found again from the tensors' ids.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch_xla.core.xla_builder as xla_builder
import torch_xla.debug.metrics as metrics
from torch import Tensor
from torch_xla import _XLAC

from bits.division import Division
from bits.environment import Precision, ReduceDtype, Step, StepWatch, Unwatched
from bits.xla import XlaEnvironment, open_environment


class Graph(NamedTuple):
    """One program. Argument and result numbers are those of its `main`."""

    stablehlo: bytes  # a portable artifact
    donated: tuple[tuple[int, int], ...]  # (argument, result) of tensors that it changes in place
    divided: tuple[int, ...]  # arguments that an earlier graph has left divided over the devices
    num_changed: int  # tensors from before the step that it changes, donated or not


class ExportEnvironment(XlaEnvironment):
    """`XlaEnvironment` whose graphs are recorded instead of run. For tracing alone: nothing can be read from it."""

    def __init__(self, *, precision: Precision, num_devices: int) -> None:
        division = Division(rank=0, world_size=1, num_devices=num_devices)
        super().__init__(precision=precision, division=division)
        self._graphs: list[Graph] | None = None  # None: not recording
        self._before: dict[
            int, tuple[Tensor, int]
        ] = {}  # by the Python object: the tensor, XLA's number of it
        self._divided: set[int] = set()  # XLA's numbers
        self._batch_size = -1

    def feed(self, tensors: Mapping[str, Tensor], *, split: bool = True) -> dict[str, Tensor]:
        fed = super().feed(tensors, split=split)
        if split:
            self._batch_size = next(iter(fed.values())).shape[0]
        return fed

    def cut(self) -> None:
        if self._graphs is not None and (results := self._results()):
            self._graphs.append(self._lower(results))
            self._forget(results)
            self._remember()

    def repeated(self, step: Step) -> Step:
        return step  # its graph is to be recorded

    def watch(self, *, calls: int, warn: Callable[[str], None]) -> StepWatch:
        return Unwatched()

    def settle(self) -> None:
        """What is alive has a value from now on, as it would behind a cut, though nobody can see it."""
        self._forget(living())

    def record(self, step: Callable[[], object]) -> list[Graph]:
        """The graphs that `step` is cut into, in order. What it is given has to be fed before."""
        self._graphs = []
        self._remember()
        try:
            step()
            return self._graphs
        finally:
            self._graphs = None

    def _remember(self) -> None:
        self._before = {id(tensor): (tensor, _number(tensor)) for tensor in living()}

    def _results(self) -> list[Tensor]:
        """What is to be computed: tensors that have changed, and those made by the step."""
        return [each for each in living() if self._has_changed(each) or _is_pending(each)]

    def _has_changed(self, tensor: Tensor) -> bool:
        # Quick, and not enough: `copy_` leaves the number as it is.
        return self._number_before(tensor) not in (None, _number(tensor))

    def _number_before(self, tensor: Tensor) -> int | None:
        return self._before.get(id(tensor), (tensor, None))[1]

    def _forget(self, tensors: Sequence[Tensor]) -> None:
        made: dict[int, Tensor] = {}  # several Python objects may be one tensor
        gradients = {id(each.grad) for each in living() if each.is_leaf}  # whole, whatever their axes
        for tensor in tensors:
            is_new, number = self._number_before(tensor) is None, _number(tensor)
            if number not in made:
                made[number] = xla_builder.create_placeholder_tensor(tensor.shape, tensor.dtype)
            tensor.data = made[number]
            is_of_batch = tensor.dim() > 0 and tensor.shape[0] == self._batch_size
            if is_new and is_of_batch and id(tensor) not in gradients:
                self._divided.add(_number(tensor))

    def _lower(self, found: list[Tensor]) -> Graph:
        results = list({_number(each): each for each in found}.values())
        numbers, _ = _XLAC._get_tensors_xla_device_data_node(results)
        arguments = {number: place for place, number in enumerate(numbers)}
        changed = [
            (number, place) for place, each in enumerate(results) if (number := self._number_before(each))
        ]
        device = _XLAC._xla_get_default_device()
        return Graph(
            stablehlo=_XLAC._get_stablehlo(results, device, [], True),
            donated=tuple((arguments[number], place) for number, place in changed if number in arguments),
            divided=tuple(place for number, place in arguments.items() if number in self._divided),
            num_changed=len(changed),
        )


def open_export(
    *, precision: Precision, num_devices: int, reduce_dtype: ReduceDtype = "float32"
) -> ExportEnvironment:
    """As `open_environment`, with PJRT_DEVICE=CPU and CPU_NUM_DEVICES=`num_devices` set before torch_xla is used."""
    open_environment(
        "xla",
        precision=precision,
        num_devices=num_devices,
        deterministic=False,
        reduce_dtype=reduce_dtype,
    )
    return ExportEnvironment(precision=precision, num_devices=num_devices)


def living() -> list[Tensor]:
    """Every XLA tensor that is alive, gradients too, the oldest first: the same step gives the same program."""
    gc.collect()
    found = [
        each for each in gc.get_objects() if issubclass(type(each), Tensor) and each.device.type == "xla"
    ]
    # Gradients that nobody has looked at have no Python object yet.
    gradients = [each.grad for each in found if each.is_leaf and each.grad is not None]
    return sorted({id(each): each for each in (*found, *gradients)}.values(), key=_number)


def fallbacks() -> dict[str, int]:
    """Operations that were left to the host so far, and how often."""
    names = [name for name in metrics.counter_names() if name.startswith("aten::")]
    return {name: int(metrics.counter_value(name)) for name in sorted(names)}


def _is_pending(tensor: Tensor) -> bool:
    """Whether operations have to run for its value. Some milliseconds where they have."""
    return bool(_XLAC._get_graph_hash([tensor]) != _no_operations())


@cache
def _no_operations() -> bytes:
    hashed: bytes = _XLAC._get_graph_hash([xla_builder.create_placeholder_tensor((), torch.float32)])
    return hashed


def _number(tensor: Tensor) -> int:
    return int(_XLAC._xla_get_tensor_id(tensor))
