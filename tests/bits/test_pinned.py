"""Page-locked memory and copies beside the kernels: with a made-up driver, and on a device if there is one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bits.pinned import PinnedFeed, page_lock


class Event:
    """A copy that is over when it is waited for, or when `over` is set."""

    all: list["Event"]

    def __init__(self) -> None:
        self.over = False
        Event.all.append(self)

    def record(self, stream: object) -> None:
        self.stream = stream

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        self.over = True


class Stream:
    def __init__(self, device: object = None) -> None:
        self.waited: list[Event] = []

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)


class Driver:
    def __init__(self, code: int) -> None:
        self.code, self.locked = code, dict[int, int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.locked |= {address: size} if self.code == 0 else {}
        return self.code

    def cudaHostUnregister(self, address: int) -> None:
        del self.locked[address]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch.cuda as far as `PinnedFeed` goes."""
    Event.all = []

    @contextmanager
    def stream(_: object) -> Iterator[None]:
        yield

    main = Stream()
    found = SimpleNamespace(
        current_stream=lambda device: main, Stream=Stream, Event=Event, stream=stream, main=main
    )
    for name in ("current_stream", "Stream", "Event", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return found


def test_memory_is_held_until_its_copy_has_arrived(cuda: SimpleNamespace) -> None:
    feed, cpu = PinnedFeed(), torch.device("cpu")
    batches: list[Any] = [torch.full((4,), value) for value in range(4)]
    for batch in batches:
        assert torch.equal(feed.feed({"image": batch}, cpu)["image"], batch)
    assert cuda.main.waited == Event.all, "the step waits for the copy"
    held = [tensors[0] for _, tensors in feed._held]
    assert [e.over for e in Event.all] == [True, True, False, False]
    assert [t.data_ptr() for t in held] == [b.data_ptr() for b in batches[2:]]
    Event.all[2].over = Event.all[3].over = True
    feed.feed({"image": batches[0]}, cpu)
    assert len(feed._held) == 1


@pytest.mark.parametrize("code", [0, 2])
def test_page_lock(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    driver, memory = Driver(code), torch.zeros(100, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    unlock = page_lock(memory)
    assert driver.locked == ({memory.data_ptr(): 100} if code == 0 else {})
    unlock()
    assert driver.locked == {}


@pytest.mark.gpu
def test_on_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    feed, device = PinnedFeed(), torch.device("cuda")
    memory = torch.zeros(8, 1 << 20, dtype=torch.uint8)
    unlock = page_lock(memory)
    assert memory[0].is_pinned()
    fed = []
    for number in range(32):
        slot = memory[number % 8].fill_(number)
        fed.append(feed.feed({"image": slot}, device)["image"])
        torch.cuda.synchronize()
    assert [int(one[-1]) for one in fed] == list(range(32))
    unlock()
    assert not memory[0].is_pinned()
