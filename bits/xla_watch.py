"""The step guard: after warm-up a step compiles nothing, reads nothing back and leaves nothing to the host.

Counted around every step (a fifth of a millisecond). A run that breaks the promise is told once, with the source line
and the shape or value that changed: the counters say that something happened; the update behind it is recorded and laid
beside the one after. With STRICT_STEPS=1, for tests, every step is recorded and raises where it happens.

A recorded step may be one more graph (torch_xla 2.9 traces a few views otherwise under a dispatch mode), so none is
recorded while all is well.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch_xla.debug.metrics as metrics
from torch import Tensor
from torch_xla import _XLAC

from bits.xla_generator import end_graph
from bits.xla_record import Call, Recorder, first_difference

WARM_UP = 2  # updates
REFUSAL = "Unexpected execution"  # torch_xla's, where a graph would run that no `cut` has ended
UNKNOWN = "the two updates behind it are alike"
READ = "aten::_local_scalar_dense"


class StepChanged(RuntimeError):
    """A step that was to be like the ones before it was not."""


def is_strict() -> bool:
    """Whether a broken promise is an error: STRICT_STEPS=1 in the environment."""
    return os.environ.get("STRICT_STEPS") == "1"


class Tally(NamedTuple):
    """What torch_xla has counted since the start."""

    compiles: int
    reads: int
    fallbacks: dict[str, int]

    def since(self, before: "Tally") -> "Tally":
        fallbacks = {n: v - before.fallbacks.get(n, 0) for n, v in self.fallbacks.items()}
        return Tally(
            self.compiles - before.compiles,
            self.reads - before.reads,
            {name: value for name, value in fallbacks.items() if value},
        )

    def __bool__(self) -> bool:
        return bool(self.compiles or self.reads or self.fallbacks)

    def __str__(self) -> str:
        parts = [f"{_counted(self.compiles, 'graph')} compiled anew"] * bool(self.compiles)
        parts += [f"{_counted(self.reads, 'value')} read on the host"] * bool(self.reads)
        parts += [f"{name} run on the host" for name in sorted(self.fallbacks)]
        return ", ".join(parts)


def _words(call: Call) -> str:
    return f"{call.op} at {call.line}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def tally() -> Tally:
    """Compiles are counted when a graph is not known, reads when a value arrives."""
    reads = metrics.metric_data("TransferFromDeviceTime")
    names = [name for name in metrics.counter_names() if name.startswith("aten::") and name != READ]
    return Tally(
        metrics.counter_value("UncachedCompile") or 0,
        reads[0] if reads else 0,
        {name: metrics.counter_value(name) or 0 for name in names},
    )


def sync(*, wait: bool = False) -> None:
    """Ends the graph: the one place in a step where one may run."""
    allowed = _XLAC._get_allow_execution()
    _XLAC._set_allow_execution(True)
    try:
        end_graph(wait=wait)
    finally:
        _XLAC._set_allow_execution(allowed)


class XlaWatch:
    """Watches the steps of one loop. `calls`: of the step in an update; warm-up is the calls of two updates."""

    def __init__(self, *, calls: int, warn: Callable[[str], None], strict: bool | None = None) -> None:
        self.strict = is_strict() if strict is None else strict
        self._calls, self._warn = calls, warn
        self._number = 0
        self._trouble = ""  # what was counted, until it is told
        self._to_record = 0  # steps, to find out what is the matter
        self._is_told = False
        self._shapes: list[dict[str, str]] = []  # of what was fed, in the last `calls` steps
        self._records: list[list[Call]] = []  # of the last `calls` steps, where they are recorded
        self._events: list[str] = []  # of this step
        self._fallbacks: dict[str, int] = {}  # counted so far

    @contextmanager
    def step(self, tensors: Mapping[str, Tensor], *, at: str) -> Iterator[None]:
        """Around one call of the step; `tensors` are what it was fed, `at` says which one it is."""
        self._number += 1
        is_warm = self._number > WARM_UP * self._calls
        before, self._events = tally(), []
        self._fallbacks = dict(before.fallbacks)
        shapes = {name: str(list(tensor.shape)) for name, tensor in tensors.items()}
        recorder = None
        if self.strict or self._to_record:
            recorder = Recorder(lambda call, is_read: self._see(call, is_read, is_warm))
        try:
            with recorder or nullcontext(), _executing(not (self.strict and is_warm)):
                yield
        except RuntimeError as error:
            if recorder is not None and REFUSAL in str(error):
                raise StepChanged(
                    f"{at}: {_words(recorder.calls[-1])} needs a value before the step's end"
                ) from error
            raise
        changed = tally().since(before)
        if is_warm and not self._is_told and (changed or self._to_record):
            self._judge(changed, self._reason(shapes, recorder), at)
        self._shapes = [*self._shapes, shapes][-self._calls :]
        self._records = [*self._records, recorder.calls][-self._calls :] if recorder else []

    def _see(self, call: Call, is_read: bool, is_warm: bool) -> None:
        name = call.op.replace(".", "::", 1).split(".")[0]  # aten.nonzero.default -> aten::nonzero
        count = metrics.counter_value(name) or 0
        if is_read:
            event = f"{_words(call)} reads the host"
        elif count > self._fallbacks.get(name, 0):
            event = f"{_words(call)} runs on the host: XLA has no such operation"
        else:
            return
        self._fallbacks[name] = count
        self._events.append(event)
        if self.strict and is_warm:
            raise StepChanged(f"after its warm-up a step stays on the device, but {event}")

    def _reason(self, shapes: dict[str, str], recorder: Recorder | None) -> str | None:
        """What differs from the same call of the update before, as far as is known."""
        if self._events:
            return self._events[0]
        if len(self._shapes) == self._calls:
            for name, shape in shapes.items():
                if (was := self._shapes[0].get(name)) != shape:
                    return f"{name} {was} -> {shape}"
        if recorder is not None and len(self._records) == self._calls:
            return first_difference(self._records[0], recorder.calls)
        return None

    def _judge(self, changed: Tally, reason: str | None, at: str) -> None:
        """Of a step that broke the promise, or of one that was recorded because another had."""
        self._trouble = self._trouble or f"{at}: {changed}"
        if self.strict:
            raise StepChanged(f"{self._trouble}; {reason or 'nothing that it was given or does differs'}")
        if reason:
            self._tell(reason)
        elif self._to_record == 0:
            self._to_record = 2 * self._calls  # the same call twice, to be laid side by side
        elif self._to_record == 1:
            self._tell(UNKNOWN)
        else:
            self._to_record -= 1

    def _tell(self, reason: str) -> None:
        self._is_told, self._to_record = True, 0
        self._warn(
            f"{self._trouble}; {reason}. After two updates a step is to run the graphs that are there: a new one costs "
            "its compile time, and a value that is read makes the device wait (both are counted in log.jsonl)"
        )


@contextmanager
def _executing(allowed: bool) -> Iterator[None]:
    before = _XLAC._get_allow_execution()
    _XLAC._set_allow_execution(allowed and before)
    try:
        yield
    finally:
        _XLAC._set_allow_execution(before)
