"""A step that is made thousands of times, traced once: later calls hand their tensors to the graph that is there.

Lazy tensors trace a step anew at each call, some 50 us of one core an operation: more than the arithmetic of a small
model on a CPU, or of a large one on a TPU. Here the graph is made of zeros in the place of the state, so that no two of
its arguments are one buffer, and is run by its hash. What else it reads (weights, numbers) is held from then on.

A graph knows tensors alone, so a step qualifies that does nothing else: one that draws from the generator, changes a
tensor in place, asks for a value, leaves something to the host or brings numbers of its own is called as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch_xla
import torch_xla.debug.metrics as metrics
from torch import Tensor
from torch_xla import _XLAC

from bits.xla_generator import standing
from bits.xla_watch import sync, tally

Tree = TypeVar("Tree", bound=tuple[Any, ...])
Layout = tuple[tuple[torch.Size, torch.dtype, str], ...]  # str: how it is divided over devices


class Program(NamedTuple):
    """A compiled step: where its arguments come from, and where the tensors of the next state do."""

    graph: str  # its hash
    arguments: tuple[int | Tensor, ...]  # the place of a tensor in the state; or the tensor itself
    results: tuple[tuple[bool, int], ...]  # whether one is computed, and its place there; or in the state

    def run(self, state: Sequence[Tensor]) -> list[Tensor]:
        arguments = [state[each] if isinstance(each, int) else each for each in self.arguments]
        made = _XLAC._run_cached_graph(self.graph, arguments)
        return [made[place] if is_made else state[place] for is_made, place in self.results]


class Repeated(Generic[Tree]):
    """`step`, a function of a (nested) NamedTuple of tensors to one like it. The first call with tensors of other
    shapes compiles, and takes the weights as they are then; a call's result is as after `cut`, or ready for it."""

    def __init__(self, step: Callable[[Tree], Tree], *, feed: Callable[[Tensor, bool], Tensor]) -> None:
        """`feed` brings a tensor of the host to the device, divided over the devices or not."""
        self._step, self._feed = step, feed
        self._programs: dict[Layout, Program | None] = {}  # None: the step does more than a graph can

    def __call__(self, state: Tree) -> Tree:
        values = list(leaves(state))
        layout = _layout_of(values)
        if layout not in self._programs:
            if _num_pending():
                sync()  # so that what is pending behind the step is the step's
            before = _traces()
            made = self._step(state)
            if not _is_pure(made, before):
                self._programs[layout] = None
                return made
            del made
            _forget()
            self._programs[layout] = self._traced(state, layout)
        program = self._programs[layout]
        return self._step(state) if program is None else rebuilt(state, iter(program.run(values)))

    def _traced(self, state: Tree, layout: Layout) -> Program | None:
        inputs = [
            self._feed(torch.zeros(shape, dtype=dtype), spec.startswith("{devices="))
            for shape, dtype, spec in layout
        ]
        try:
            first, again = (list(leaves(self._step(rebuilt(state, iter(inputs))))) for _ in range(2))
            return _compiled(inputs, first, again)
        finally:
            _forget()


def _layout_of(values: list[Tensor]) -> Layout:
    specs = _XLAC._get_xla_sharding_specs(values)
    return tuple((value.shape, value.dtype, spec) for value, spec in zip(values, specs, strict=True))


def _compiled(inputs: Sequence[Tensor], first: Sequence[Tensor], again: Sequence[Tensor]) -> Program | None:
    """The graph of `first`. None where a result is neither computed nor an input, or where what was traced `again` is
    another graph or reads other numbers: some of the step's own, which a graph would not follow."""
    (roots, results), (others, _) = _computed(inputs, first), _computed(inputs, again)
    if not all(_XLAC._check_tensor_need_materialization(roots)):
        return None
    # First of both, each buffer once: under SPMD asking gives every argument another number.
    numbers, held = _XLAC._get_tensors_xla_device_data_node([*roots, *others])
    num_read = len(_XLAC._get_tensors_xla_device_data_node(roots)[0])
    graph = _XLAC._get_graph_hash(roots)
    if num_read != len(numbers) or graph != _XLAC._get_graph_hash(others):
        return None
    own = {_XLAC._xla_get_tensor_id(tensor): number for number, tensor in enumerate(inputs)}
    _XLAC._xla_warm_up_cache(roots, [])
    arguments = tuple(own.get(number, tensor) for number, tensor in zip(numbers, held, strict=True))
    return Program(graph, arguments, results)


def _computed(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[list[Tensor], tuple[tuple[bool, int], ...]]:
    """What a graph has to compute, each result once, and where each output is to be found."""
    place = {_XLAC._unique_id_for_ir_and_data(tensor): number for number, tensor in enumerate(inputs)}
    assert len(place) == len(inputs), "two inputs of a graph are one"
    made: dict[str, tuple[int, Tensor]] = {}
    results = []
    for tensor in outputs:
        value = _XLAC._unique_id_for_ir_and_data(tensor)
        if value not in place:
            made.setdefault(value, (len(made), tensor))
        results.append((False, place[value]) if value in place else (True, made[value][0]))
    return [tensor for _, tensor in made.values()], tuple(results)


def _is_pure(made: tuple[Any, ...], before: tuple[object, ...]) -> bool:
    """Whether the step has run nothing and drawn nothing since, and left nothing pending but its results."""
    found = {_XLAC._xla_get_tensor_id(tensor): tensor for tensor in leaves(made)}
    num_made = sum(_XLAC._check_tensor_need_materialization(list(found.values())))
    return _traces() == before and num_made == _num_pending()


def _num_pending() -> int:
    """Tensors that wait for a graph to be run."""
    return sum(_XLAC._check_device_tensor_need_materialization(str(torch_xla.device())))


def _forget() -> None:
    """What is pending is not to be computed. A tensor that somebody still holds would be lost."""
    _XLAC._clear_pending_irs(str(torch_xla.device()))


def _traces() -> tuple[object, ...]:
    """What is another where a step has done more than trace."""
    num_graphs = sum(metrics.counter_value(name) or 0 for name in ("CachedCompile", "UncachedCompile"))
    return tally(), num_graphs, standing()


def leaves(tree: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors of a (nested) NamedTuple, in order."""
    for part in tree:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from leaves(part)


def rebuilt(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    """A NamedTuple like `tree` of other tensors."""
    parts = (next(tensors) if isinstance(part, Tensor) else rebuilt(part, tensors) for part in tree)
    return type(tree)(*parts)
