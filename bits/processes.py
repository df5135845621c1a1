"""Starts N processes of the same command on this machine and gives back one exit code.

Plain environment variables (as torchrun sets them) rather than an elastic agent, because the agent turns
every failure into exit code 1, and the caller of a launcher needs 2 (user error) and 75 (stopped, state
saved) as they are.
"""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

LAUNCHER = "ROBUST_BITS_LAUNCHER"  # process id of the launcher that a rank must not outlive
GRACE_S = 60.0  # after one process stopped with its state saved, the others get this long to end as well
FATAL_GRACE_S = 1.0  # after one failed, which leaves the others waiting for it for ever


def run_processes(command: Sequence[str], num_processes: int) -> int:
    """Runs `command` once per rank, forwards SIGTERM and SIGINT; the first failing rank's exit code, or 0.

    2 (user error) goes before other codes, which it explains. A process ended by a signal counts as 128 + the
    signal's number, as a shell reports it.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _run(command, num_processes, Path(folder) / "error")


def _run(command: Sequence[str], num_processes: int, error_claim: Path) -> int:
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    # Before the first child: one in a session of its own would outlive a launcher that a signal ends here.
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        for rank_environment in _environments(num_processes, error_claim):
            # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
            children.append(subprocess.Popen(command, env=rank_environment, start_new_session=True))
        return _wait(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _end(children)


def _environments(num_processes: int, error_claim: Path) -> list[dict[str, str]]:
    shared = os.environ | {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        LAUNCHER: str(os.getpid()),
        "ROBUST_BITS_ERROR_CLAIM": str(error_claim),  # who makes this file prints the error: one line, not N
    }
    # As many threads as cores in every process would fight each other for the cores.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; those that another's failure leaves waiting for ever are ended."""
    failed: list[int] = []  # in the order they ended
    deadline: float | None = None
    ended: set[int] = set()
    while len(ended) < len(children):
        for child in children:
            if child.pid not in ended and child.poll() is not None:
                ended.add(child.pid)
                failed += [child.returncode] if child.returncode else []
        if failed and deadline is None:
            # 75 is agreed between ranks: the others save their state and end as well.
            deadline = time.monotonic() + (GRACE_S if failed[0] == 75 else FATAL_GRACE_S)
        if deadline is not None and time.monotonic() > deadline:
            is_saving = children[0].poll() is None  # rank 0 writes the state
            _end(children)
            if failed[0] == 75 and is_saving:
                return 1  # 75 would promise that it was saved
            break
        time.sleep(0.05)
    return _shell_code(2 if 2 in failed else (failed or [0])[0])


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def follow_launcher() -> None:
    """In a rank that `run_processes` started: asks this process to stop, as SIGTERM does, once its launcher is gone."""
    launcher = int(os.environ.get(LAUNCHER, "0"))
    if launcher:
        threading.Thread(target=_stop_without, args=(launcher,), daemon=True).start()


def _stop_without(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_worker() -> bool:
    """Whether some launcher (ours, torchrun, accelerate) has already given this process its rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
