"""Loader workers end when the process that uses them does, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {root!r})
from data.index import load_index
from data.loader import eval_loader
from data.transform import EvalTransform

if __name__ == "__main__":
    loader = eval_loader(
        load_index({shards!r}), keys=None, global_batch=8, rank=0, world_size=1, image_size=32,
        resize=EvalTransform(mode="squash"), num_workers=2, seed=0,
    )
    next(loader)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {ending}
"""


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise RuntimeError('a bug')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT),
        ("pass", 0),
    ],
    ids=["crash", "kill-9", "sigterm", "ctrl-c", "end"],
)
def test_no_worker_outlives_its_parent(digits: Path, tmp_path: Path, ending: str, code: int) -> None:
    script = tmp_path / "program.py"
    root = str(Path(__file__).parents[2])
    script.write_text(PROGRAM.format(root=root, shards=str(digits / "val"), ending=ending))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    assert process.wait(timeout=30) == code
    process.stdout.close()
    deadline = time.monotonic() + 15
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if is_alive(pid)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
def test_workers_are_deaf_to_a_clusters_sigterm(digits: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    root = str(Path(__file__).parents[2])
    ending = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.killpg(0, signal.SIGTERM); print(len(list(loader)))"
    script.write_text(PROGRAM.format(root=root, shards=str(digits / "val"), ending=ending))
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        start_new_session=True,
        check=True,
    )
    assert done.stdout.splitlines()[1] == str(-(-359 // 8) - 1), os.linesep.join(done.stdout.splitlines())


MANY = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {root!r})
from data.index import load_index
from data.loader import eval_loader
from data.transform import EvalTransform

def count():
    return len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children()), len(os.listdir("/dev/shm"))

def loader():
    return eval_loader(
        load_index({shards!r}), keys=None, global_batch=64, rank=0, world_size=1, image_size=8,
        resize=EvalTransform(mode="squash"), num_workers=2, seed=0,
    )
{body}
"""
LEAK = """
if __name__ == "__main__":
    next(loader())
    before = count()
    for number in range(25):
        batches = loader()
        next(batches)
        if number % 3 == 0:
            batches.close()  # the others end when nobody has them any more
        del batches
    print(before == count(), before, count())
"""
CTRL_C = """
if __name__ == "__main__":
    real = multiprocessing.context.ForkServerProcess.start
    for delay in (0.0, 0.002, 0.01, 0.03):
        def start(process):
            real(process)
            time.sleep(delay)
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        multiprocessing.context.ForkServerProcess.start = start
        print(sum(int(batch.mask.sum()) for batch in loader()))
"""


def run_many(digits: Path, tmp_path: Path, body: str) -> "subprocess.CompletedProcess[str]":
    script = tmp_path / "program.py"
    script.write_text(MANY.format(root=str(Path(__file__).parents[2]), shards=str(digits / "val"), body=body))
    command = [sys.executable, "-W", "error", str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_many_loaders_leave_nothing_behind(digits: Path, tmp_path: Path) -> None:
    """No descriptors, processes or shared memory, whether a loader is closed or forgotten."""
    done = run_many(digits, tmp_path, LEAK)
    assert done.stdout.startswith("True"), done.stdout


def test_signals_to_a_worker_that_starts(digits: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches workers too, and some have only just begun: no traceback, and no other one for it."""
    done = run_many(digits, tmp_path, CTRL_C)
    assert (done.stdout.split(), done.stderr) == (["359"] * 4, "")
