"""Starts N processes of the same command on this machine and gives back one exit code.

Plain environment variables (as torchrun sets them) rather than an elastic agent, because the agent turns every
failure into exit code 1 and the caller of a launcher needs 2 (user error) and 75 (stopped, state saved) as they are.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

GRACE_S = 60.0  # after one process failed, the others get this long to end by themselves


def run_processes(command: Sequence[str], num_processes: int) -> int:
    """Runs `command` once per rank; forwards SIGTERM and SIGINT; returns the first failing rank's exit code, or 0.

    A process ended by a signal counts as 128 + the signal's number, as a shell reports it.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _run(command, num_processes, Path(folder) / "error")


def _run(command: Sequence[str], num_processes: int, error_claim: Path) -> int:
    children = _start(command, num_processes, error_claim)

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(children)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()


def _start(command: Sequence[str], num_processes: int, error_claim: Path) -> list[subprocess.Popen[bytes]]:
    shared = os.environ | {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ROBUST_BITS_ERROR_CLAIM": str(error_claim),  # who makes this file prints the error: one line, not N
    }
    # As many threads as cores in every process would fight each other for the cores.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    return [
        # A session of its own: Ctrl-C reaches the launcher alone, which passes it on once.
        subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True)
        for r in range(num_processes)
    ]


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline: float | None = None
    while any(child.poll() is None for child in children):
        failed = [child.returncode for child in children if child.returncode not in (None, 0)]
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and (time.monotonic() > deadline or _is_fatal(failed)):
            _terminate(children)
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    return _shell_code(next((code for code in codes if code == 2), next((c for c in codes if c), 0)))


def _is_fatal(codes: Sequence[int]) -> bool:
    # 75 is agreed between ranks: the others are about to end as well. Anything else leaves them waiting for ever.
    return any(code != 75 for code in codes)


def _terminate(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_worker() -> bool:
    """Whether some launcher (ours, torchrun, accelerate) has already given this process its rank."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
