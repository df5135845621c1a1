"""`later`: in order, bounded, on copies, and an exception is never lost."""

import pytest
import torch

from bits.later import LaterQueue, copies


def test_order_and_depth() -> None:
    queue, fetched, seen = LaterQueue(depth=2), [], []

    def put(number: int) -> None:
        def fetch() -> dict[str, torch.Tensor]:
            fetched.append(number)
            return {"x": torch.tensor(number)}

        queue.put(fetch, lambda host: seen.append(host["x"].item()))

    for number in range(5):
        put(number)
        # The oldest runs when one more than `depth` would wait; nothing is fetched before its turn.
        assert len(queue) == min(number + 1, 2)
        assert seen == fetched == list(range(max(0, number - 1)))
    queue.flush()
    assert seen == [0, 1, 2, 3, 4]
    assert len(queue) == 0
    queue.flush()
    assert seen == [0, 1, 2, 3, 4], "an entry runs once"


def test_depth_zero_runs_at_once() -> None:
    queue, seen = LaterQueue(depth=0), []
    queue.put(lambda: {}, lambda host: seen.append(1))
    assert seen == [1]


def test_exception_surfaces_at_the_next_call_and_the_rest_is_kept() -> None:
    queue, seen = LaterQueue(depth=1), []

    def fail(host: dict[str, torch.Tensor]) -> None:
        raise OSError("disk full")

    queue.put(lambda: {}, fail)
    with pytest.raises(OSError, match="disk full"):
        queue.put(lambda: {}, lambda host: seen.append("second"))
    queue.flush()
    assert seen == ["second"]
    queue.put(lambda: {}, fail)
    with pytest.raises(OSError, match="disk full"):
        queue.flush()


def test_copies_do_not_follow_the_original() -> None:
    value = torch.ones(3, requires_grad=True)
    held = copies({"x": value})
    with torch.no_grad():
        value.zero_()
    assert held["x"].tolist() == [1.0, 1.0, 1.0]
    assert not held["x"].requires_grad
