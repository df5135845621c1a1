"""Batches from page-locked host memory to a CUDA device, beside the kernels that run.

The host is ahead of the device, so a copy on a stream of its own is over before the step that needs it begins.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

_IN_FLIGHT: Final = 2  # copies that may be under way at a time


class PinnedFeed:
    """Holds what is copied until it has arrived: its memory belongs to a loader, which may otherwise write there
    again (torch keeps watch over its own page-locked memory alone).
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._held: deque[tuple[Any, list[Tensor]]] = deque()

    def feed(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The tensors on `device`, for the current stream."""
        pinned = {name: tensor for name, tensor in tensors.items() if tensor.is_pinned()}
        if not pinned:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        current = torch.cuda.current_stream(device)
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            fed = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)  # type: ignore[no-untyped-call]
        for tensor in fed.values():
            tensor.record_stream(current)  # or its memory would be free for the next copy too early
        current.wait_event(done)
        self._held.append((done, list(pinned.values())))
        self._release()
        return fed

    def _release(self) -> None:
        while self._held and (len(self._held) > _IN_FLIGHT or self._held[0][0].query()):
            self._held.popleft()[0].synchronize()


def page_lock(memory: Tensor) -> Callable[[], None]:
    """Page-locks the memory of a tensor in place; returns what undoes it. Where the driver refuses (a limit on locked
    memory) copies are slower and nothing else.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    if int(runtime.cudaHostRegister(address, memory.numel() * memory.element_size(), 0)) != 0:
        return lambda: None

    def unlock() -> None:
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(address)

    return unlock
