"""Batches come in order, each once, whatever happens to the processes that make them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.bad import BadSample
from data.batch import Batch
from data.pool import PREFETCH, Pool

# Workers import the job by the name of its module, which a test's is not.
JOB = '''
import os, signal, time
from pathlib import Path
from data.bad import BadSample
from data.slots import BatchShape

class Odd(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")

class Job:
    """Task t has the keys 4t .. 4t+3. Faults: key -> (what happens there, how many times)."""

    shape = BatchShape(4, 2, 8)

    def __init__(self, folder, faults, pause_s=0.0):
        self.folder, self.faults, self.pause_s = folder, faults, pause_s

    def fill(self, task, into, at):
        keys = range(4 * task, 4 * task + 4)
        for slot, key in enumerate(keys):
            at(key)
            into.image[slot] = key % 256
            time.sleep(self.pause_s)
            self.fail(key)
        for field in (into.label, into.key, into.seed):
            field[:] = keys
        into.mask[:] = True
        into.draw[:] = task
        return [BadSample("why", shard="s", key=str(task), position=4 * task)] if task % 5 == 0 else []

    def fail(self, key):
        what, times = self.faults.get(key, ("", 0))
        count = sum(path.name.startswith(f"{key}-") for path in Path(self.folder).iterdir())
        if count >= times:
            return
        (Path(self.folder) / f"{key}-{count}").touch()
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "exit":
            os._exit(7)
        if what == "hang":
            time.sleep(600)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "value":
            raise ValueError(f"key {key} is wrong")
        if what == "os":
            raise FileNotFoundError(2, "No such file", "a/b")
        if what == "bad":
            raise BadSample("torn", shard="s.tar", key="k", position=key)
        if what == "odd":
            raise Odd("one", "two")
        if what == "bug":
            raise KeyError("a bug")
'''
MakePool = Callable[..., Pool[int]]


@pytest.fixture
def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    (tmp_path / "pool_job.py").write_text(JOB)
    (tmp_path / "faults").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    import pool_job  # type: ignore[import-not-found]

    def make(
        faults: dict[int, tuple[str, int]] | None = None, *, pause_s: float = 0.0, **settings: Any
    ) -> Pool[int]:
        job = pool_job.Job(str(tmp_path / "faults"), faults or {}, pause_s)
        return Pool(job, **{"num_workers": 2, "name_of": lambda key: f"image {key}"} | settings)

    yield make
    del sys.modules["pool_job"]


def assert_whole(batch: Batch, task: int) -> None:
    keys = list(range(4 * task, 4 * task + 4))
    assert batch.key.tolist() == batch.label.tolist() == batch.seed.tolist() == keys
    assert batch.image.flatten(1).tolist() == [[key % 256] * 12 for key in keys]
    assert batch.mask.all()
    assert (batch.draw == task).all()


def run_all(pool: Pool[int], num_tasks: int) -> None:
    """Every batch in its place."""
    done = 0
    for task, (batch, bad) in enumerate(pool.run(iter(range(num_tasks)))):
        assert_whole(batch, task)
        assert [sample.position for sample in bad] == ([4 * task] if task % 5 == 0 else [])
        done += 1
    assert done == num_tasks


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("num_tasks", [0, 1, 3, 60])
def test_batches_come_in_order(make_pool: MakePool, num_workers: int, num_tasks: int) -> None:
    run_all(make_pool(num_workers=num_workers), num_tasks)


def test_a_consumer_may_keep_them_all(make_pool: MakePool) -> None:
    kept = [batch for batch, _ in make_pool().run(iter(range(30)))]
    for task, batch in enumerate(kept):
        assert_whole(batch, task)


def test_what_is_still_seen_is_not_overwritten(make_pool: MakePool) -> None:
    views = []
    for batch, _ in make_pool(num_workers=3).run(iter(range(40))):
        views = [*views[-2:], batch.image[1]]
        time.sleep(0.002)
        firsts = [int(view[0, 0, 0]) for view in views]
        assert [(view == first).all() for view, first in zip(views, firsts, strict=True)]
        assert firsts == sorted(firsts)
        assert len(set(firsts)) == len(firsts)


def test_no_more_is_made_than_there_is_room_for(make_pool: MakePool) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for task in range(100):
            taken += 1
            yield task

    batches = make_pool(num_workers=2).run(tasks())
    for task in range(10):
        next(batches)
        time.sleep(0.01)
        assert taken <= task + 1 + 2 * PREFETCH
    batches.close()  # type: ignore[attr-defined]


def test_no_more_workers_than_batches(make_pool: MakePool) -> None:
    before = set(multiprocessing.active_children())
    batches = make_pool(num_workers=8).run(iter(range(2)))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) <= 2
    list(batches)


def test_workers_end_with_the_iteration(make_pool: MakePool) -> None:
    before, shm = set(multiprocessing.active_children()), _shared_memory()
    batches = make_pool().run(iter(range(100)))
    next(batches)
    children = set(multiprocessing.active_children()) - before
    assert len(children) == 2
    del batches
    assert not set(multiprocessing.active_children()) - before
    assert _shared_memory() == shm


def _shared_memory() -> set[str]:
    return (
        {name for name in os.listdir("/dev/shm") if "torch" in name} if os.path.isdir("/dev/shm") else set()
    )


@pytest.mark.parametrize("what", ["die", "exit"])
def test_a_dead_worker_is_named_and_replaced(make_pool: MakePool, what: str) -> None:
    """At the first, a middle and the last sample of a batch, and twice at one: no batch is lost, none comes twice."""
    said: list[str] = []
    faults = {0: (what, 1), 22: (what, 2), 79: (what, 1)}
    run_all(make_pool(faults, warn=said.append), 20)
    ending = r"(signal 9)" if what == "die" else "(exit code 7)"
    assert len(said) == 4
    for key in (0, 22, 79):
        text = f"died {ending} at image {key}; another one makes its batch again"
        assert sum(line.endswith(text) for line in said) == faults[key][1], said


def test_without_a_listener_it_is_a_warning(make_pool: MakePool) -> None:
    with pytest.warns(RuntimeWarning, match=r"loader worker \d+ died \(signal 9\) at image 3; another one"):
        run_all(make_pool({3: ("die", 1)}), 3)


@pytest.mark.parametrize("what", ["hang", "stop"])
def test_a_stuck_worker_is_named_and_replaced(make_pool: MakePool, what: str) -> None:
    said: list[str] = []
    begin = time.monotonic()
    run_all(make_pool({9: (what, 1)}, stuck_after_s=0.5, warn=said.append), 8)
    assert time.monotonic() - begin < 20
    assert len(said) == 1
    assert "did not move for" in said[0]
    assert "at image 9;" in said[0]


def test_a_slow_worker_is_left_alone(make_pool: MakePool) -> None:
    """A batch takes four times as long as one sample may."""
    run_all(make_pool(pause_s=0.4, stuck_after_s=0.6, num_workers=1), 2)


def test_a_consumer_may_take_its_time(make_pool: MakePool) -> None:
    batches = make_pool(stuck_after_s=0.3).run(iter(range(6)))
    for task, (batch, _) in enumerate(batches):
        assert_whole(batch, task)
        time.sleep(0.4)


@pytest.mark.parametrize(("what", "words"), [("die", "died"), ("hang", "did not move")])
def test_a_batch_that_costs_too_many_workers_ends_the_run(make_pool: MakePool, what: str, words: str) -> None:
    said: list[str] = []
    batches = make_pool({13: (what, 99)}, stuck_after_s=0.3, warn=said.append).run(iter(range(9)))
    for task in range(3):
        assert_whole(next(batches)[0], task)
    with pytest.raises(ChildProcessError, match=rf"{words}.* at image 13, the 3rd for the same batch"):
        next(batches)
    assert len(said) == 2


def test_workers_killed_from_outside_at_any_moment(make_pool: MakePool) -> None:
    """As a kernel short of memory does it."""
    before, stop, said = set(multiprocessing.active_children()), threading.Event(), list[str]()

    def kill() -> None:
        for number in range(6):
            if stop.wait(0.25):
                return
            for child in sorted(set(multiprocessing.active_children()) - before, key=lambda c: c.pid or 0):
                if child.pid is not None and number % 2 == child.pid % 2:
                    os.kill(child.pid, signal.SIGKILL)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_all(make_pool(num_workers=3, pause_s=0.002, warn=said.append), 400)
    finally:
        stop.set()
        killer.join()
    assert said, "nobody was killed"


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("value", ValueError, "^key 18 is wrong$"),
        ("os", FileNotFoundError, "No such file"),
        ("bad", BadSample, "^bad sample 'k' in shard s.tar: torn$"),
        ("odd", ValueError, "^one two$"),
        ("bug", RuntimeError, "in a loader worker:\nTraceback(.|\n)*KeyError: 'a bug'"),
    ],
)
def test_an_error_comes_in_its_place(
    make_pool: MakePool, what: str, error: type[Exception], text: str
) -> None:
    batches = make_pool({18: (what, 1)}).run(iter(range(9)))
    for task in range(4):
        assert_whole(next(batches)[0], task)
    with pytest.raises(error, match=text) as caught:
        next(batches)
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (2, "a/b")
    if isinstance(caught.value, BadSample):
        assert caught.value.position == 18


@pytest.mark.parametrize("num_taken", [3, 20])
def test_memory_is_pinned_while_it_is_used(make_pool: MakePool, num_taken: int) -> None:
    calls: list[str] = []

    def pin(memory: torch.Tensor) -> Callable[[], None]:
        span = range(memory.data_ptr(), memory.data_ptr() + memory.numel())
        spans.append(span)
        calls.append("pin")
        return lambda: calls.append("unpin")

    spans: list[range] = []
    batches = make_pool(pin=pin).run(iter(range(20)))
    for _ in range(num_taken):
        batch, _ = next(batches)
        assert batch.image.data_ptr() in spans[0]
        assert calls == ["pin"]
    batches.close()  # type: ignore[attr-defined]
    assert calls == ["pin", "unpin"]
    assert batch.key.tolist() == [4 * num_taken - 4 + slot for slot in range(4)], "still there"
