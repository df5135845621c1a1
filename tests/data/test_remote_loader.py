"""Both loaders on a network that fails, and with workers that are killed: the batches are those of local shards."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from data.batch import Batch
from data.cache import Cache
from data.draws import MixSettings
from data.index import DatasetIndex, load_index
from data.loader import eval_loader, train_loader
from data.order import Cursor
from data.remote import Retry
from data.transform import AugmentSettings, EvalTransform

FAST = Retry(attempts=5, delay_s=0.01, max_delay_s=0.02, timeout_s=5.0, wait_s=20.0)
KINDS = [("train", 0), ("train", 2), ("eval", 0), ("eval", 2)]


def read(
    index: DatasetIndex, kind: str, num_workers: int, warn: Callable[[str], None] | None = None
) -> list[Batch]:
    if kind == "eval":
        return list(
            eval_loader(
                index, keys=None, global_batch=8, rank=0, world_size=1, image_size=16,
                resize=EvalTransform(mode="squash"), num_workers=num_workers, seed=0, warn=warn,
            )
        )  # fmt: skip
    batches = train_loader(
        index, seed=0, global_batch=6, rank=0, world_size=1, start=Cursor(0, 0), num_epochs=2, image_size=16,
        transform_of_epoch=[AugmentSettings()] * 2, mix_of_epoch=[MixSettings()] * 2, num_workers=num_workers,
        window=2, warn=warn,
    )  # fmt: skip
    return [batch for _, batch in batches]


def assert_equal(found: Sequence[Batch], wanted: Sequence[Batch]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def server(noise: DatasetIndex, serve: Callable[[Path], Any]) -> Any:
    return serve(noise.root.parent)


def open_remote(server: Any, cache: Path, **settings: Any) -> DatasetIndex:
    return load_index(f"{server.url}/train", cache=Cache.default(cache, **settings), retry=FAST)


@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
@pytest.mark.parametrize("fault", ["503", "cut:65536", "slow:0.01", "other", "mixed"])
def test_faults_change_nothing(
    server: Any, noise: DatasetIndex, tmp_path: Path, kind: str, num_workers: int, fault: str
) -> None:
    """Refused twice, cut every 64 kB, slow, wrong bytes at first, and all of it."""
    index = open_remote(server, tmp_path)
    mixed = ("503", "cut:65536", "other", "500", "slow:0.01 cut:100000", "")

    def decide(name: str, number: int) -> str:
        if not name.endswith(".tar"):
            return ""
        if fault == "mixed":
            return mixed[number % len(mixed)] if number < 12 else ""
        ends = {"503": 2, "other": 1}.get(fault, 1000)
        return fault if number < ends else ""

    server.fault = decide
    assert_equal(read(index, kind, num_workers), read(noise, kind, 0))
    most = {"503": 18, "cut:65536": 12, "slow:0.01": 6, "other": 12}
    assert len(server.requests(".tar")) >= most.get(fault, 12), "the faults were met"


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_workers_killed_while_shards_come(
    server: Any, noise: DatasetIndex, tmp_path: Path, kind: str
) -> None:
    """kill -9 of every worker, three times, in the middle of downloads."""
    index = open_remote(server, tmp_path)
    server.fault = lambda name, number: "slow:0.04" if name.endswith(".tar") else ""
    said, done, killed = list[str](), threading.Event(), list[int]()

    def kill() -> None:
        for _ in range(3):
            known = {path.name for path in tmp_path.glob("shards/*")}
            while not done.wait(0.02):
                parts = [path for path in tmp_path.glob("shards/*.part.*") if path.name not in known]
                workers = [w for w in multiprocessing.active_children() if w.name.startswith("loader-")]
                if parts and workers:
                    for worker in workers:
                        assert worker.pid is not None
                        os.kill(worker.pid, signal.SIGKILL)
                        killed.append(worker.pid)
                    break
            done.wait(0.3)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert_equal(read(index, kind, 2, said.append), read(noise, kind, 0))
    finally:
        done.set()
        killer.join()
    assert killed
    assert said
    assert not list(tmp_path.glob("leases/*.lease"))


@pytest.mark.parametrize(("kind", "num_workers"), KINDS)
@pytest.mark.filterwarnings("ignore:.*samples of .* are read one by one")
def test_a_disk_that_holds_three_shards(
    server: Any, noise: DatasetIndex, tmp_path: Path, kind: str, num_workers: int
) -> None:
    """A tmpfs that is smaller than the data, and than two windows: what has no room comes sample by sample."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=560k", "tmpfs", str(disk)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a tmpfs")
    try:
        assert_equal(read(open_remote(server, disk), kind, num_workers), read(noise, kind, 0))
        assert len(list((disk / "shards").iterdir())) <= 4
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_server_that_goes_away_ends_it(server: Any, noise: DatasetIndex, tmp_path: Path) -> None:
    """No batch is made of what is there."""
    index = open_remote(server, tmp_path)
    numbers = count()
    server.fault = lambda name, number: "503" if name.endswith(".tar") and next(numbers) > 2 else ""
    began = time.monotonic()
    for num_workers in (0, 2):
        with pytest.raises(OSError, match=r"shard train-00000\d\.tar: .*HTTP 503 .*\(5 attempts\)"):
            read(index, "eval", num_workers)
    assert time.monotonic() - began < 60
