"""`later`: host work on device values, in order, with bounded depth, never inside a step."""

from collections import deque
from collections.abc import Callable, Mapping

from torch import Tensor

HostFn = Callable[[dict[str, Tensor]], None]
Fetch = Callable[[], dict[str, Tensor]]


class LaterQueue:
    """Runs `fn(host_tensors)` for entries in the order they came.

    An entry is a `fetch` that gives host copies (the copy on the device was made when it was put here, before
    the next step could donate the buffer). At most `depth` entries wait; one more runs the oldest. An exception
    of an entry's `fn` surfaces at the next `put` or `flush`.
    """

    def __init__(self, depth: int) -> None:
        assert depth >= 0, f"depth {depth} must not be negative"
        self._depth = depth
        self._waiting: deque[tuple[Fetch, HostFn]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, fetch: Fetch, fn: HostFn) -> None:
        self._waiting.append((fetch, fn))
        while len(self._waiting) > self._depth:
            self._run_oldest()

    def flush(self) -> None:
        """Runs everything that waits; on an exception the entries behind it stay in the queue."""
        while self._waiting:
            self._run_oldest()

    def _run_oldest(self) -> None:
        fetch, fn = self._waiting.popleft()
        fn(fetch())


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Device copies that no later in-place update or buffer donation can change."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
