"""What a step did on the device, operation by operation, so that two steps can be laid side by side.

A `TorchDispatchMode`: it sees forward and backward passes, attacks and updates, and changes nothing that is traced.
It costs some microseconds an operation, so a run switches it on only when something went wrong; tests keep it on.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Frames that no user has written: torch and torch_xla themselves, and what watches.
_FOREIGN = (
    os.path.dirname(torch.__file__) + os.sep,
    os.sep + "torch_xla" + os.sep,
    os.path.join("bits", "xla_record.py"),
    os.path.join("bits", "xla_watch.py"),
)
BACKWARD = "in the backward pass"


class Call(NamedTuple):
    """One operation: its name, its arguments in order (a tensor as dtype and shape), and who asked for it."""

    op: str
    values: tuple[object, ...]
    line: str


class Recorder(TorchDispatchMode):
    """Collects `calls`; `on_call(call, is_read)` is told of each, before it runs when it reads the host."""

    def __init__(self, on_call: Callable[[Call, bool], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._on_call = on_call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = Call(str(func), tuple(_values((*args, *kwargs.values()))), source_line(sys._getframe()))
        self.calls.append(call)
        is_read = func is torch.ops.aten._local_scalar_dense.default or _goes_to_host(args, kwargs)
        if is_read:
            self._on_call(call, True)
        result = func(*args, **kwargs)
        if not is_read:
            self._on_call(call, False)
        return result


def _goes_to_host(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """`.cpu()`, `.to("cpu")` and copies into a host tensor."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if not any(tensor.device.type == "xla" for tensor in tensors):
        return False
    device = kwargs.get("device")
    return (device is not None and torch.device(device).type == "cpu") or tensors[0].device.type == "cpu"


def _values(found: Any) -> Iterator[object]:
    for value in found:
        if isinstance(value, Tensor):
            yield f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        elif isinstance(value, list | tuple):
            yield tuple(_values(value))
        else:
            yield value if isinstance(value, bool | int | float | str | None) else str(value)


def source_line(frame: FrameType | None) -> str:
    """file:line and function of the innermost frame that is neither torch's nor the watch's own; where that lies in an
    installed package, who of this checkout called it too."""
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        path = frame.f_code.co_filename
        if not any(part in path for part in _FOREIGN):
            is_ours = path.startswith(ROOT + os.sep) and "site-packages" not in path
            if is_ours or not lines:
                lines.append(f"{_short(path)}:{frame.f_lineno} ({frame.f_code.co_name})")
            if is_ours:
                break
        frame = frame.f_back
    return ", called by ".join(lines) or BACKWARD


def _short(path: str) -> str:
    if path.startswith(ROOT + os.sep) and "site-packages" not in path:
        return os.path.relpath(path, ROOT)
    return path.rpartition("site-packages" + os.sep)[2]


def first_difference(before: list[Call], after: list[Call]) -> str | None:
    """Where `after` leaves `before`, in words; None where they are alike.

    A changed operation or shape comes before a changed number, and a number that became 0 or 1 before another: those
    are constants of an XLA graph, while others mostly travel as data.
    """
    for old, new in zip(before, after, strict=False):
        if old.op != new.op:
            return f"{new.op} at {new.line} where {old.op} was, at {old.line}"
        if _constants(old.values) != _constants(new.values):
            return _changed(old, new)
    if len(before) != len(after):
        shorter, longer = sorted((before, after), key=len)
        verb = "does" if longer is after else "no longer does"
        return f"it {verb} {longer[len(shorter)].op} at {longer[len(shorter)].line}"
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old.values != new.values]
    changed.sort(key=lambda pair: not any(v in (0.0, 1.0) for v in _floats(pair[1].values)))
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return _changed(*changed[0]) + more if changed else None


def _changed(old: Call, new: Call) -> str:
    return f"{new.op} at {new.line}: {_words(old.values)} -> {_words(new.values)}"


def _constants(values: tuple[object, ...]) -> tuple[object, ...]:
    """Without the floats."""
    return tuple(
        _constants(value) if isinstance(value, tuple) else (None if isinstance(value, float) else value)
        for value in values
    )


def _floats(values: tuple[object, ...]) -> Iterator[float]:
    for value in values:
        if isinstance(value, tuple):
            yield from _floats(value)
        elif isinstance(value, float):
            yield value


def _words(values: tuple[object, ...]) -> str:
    text = ", ".join(str(value) for value in values)
    return text if len(text) <= 160 else f"{text[:157]}..."
