"""N processes and one exit code: which one, who is ended, and that signals arrive."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from bits import processes
from bits.processes import free_port, is_worker, run_processes


def run(body: str, num_processes: int = 2) -> int:
    """Runs `body` with `rank` in every process."""
    code = f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{body}"
    return run_processes([sys.executable, "-I", "-S", "-c", code], num_processes)


def test_every_rank_gets_its_place(tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    body = f"open('{tmp_path}/%d' % rank, 'w').write(' '.join(os.environ[n] for n in {names}))"
    assert run(body, 3) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [words[:5] for words in found] == [[str(r), str(r), "3", "3", "127.0.0.1"] for r in range(3)]
    assert len({words[5] for words in found}) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(2)", 2),
        ("sys.exit(2 if rank else 0)", 2),
        ("sys.exit(75)", 75),
        ("sys.exit([1, 2][rank])", 2),
        ("sys.exit([75, 1][rank])", None),  # whichever ended first
        ("os.kill(os.getpid(), 9)", 137),
        ("os.kill(os.getpid(), 11) if rank else None", 139),
    ],
)
def test_exit_codes(body: str, code: int | None) -> None:
    assert run(body) in ([1, 75] if code is None else [code])


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_failure_ends_those_that_wait_for_it(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Its code is returned, not the 137 of a process that was ended because of it."""
    monkeypatch.setattr(processes, "FATAL_GRACE_S", 0.2)
    started = time.monotonic()
    assert run(f"time.sleep(60) if rank == 0 else sys.exit({code})") == code
    assert time.monotonic() - started < 20


def test_after_a_stop_the_others_have_time_to_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "FATAL_GRACE_S", 0.0)
    saved = tmp_path / "saved"
    assert run(f"rank and (time.sleep(0.7), open('{saved}', 'w').close()); sys.exit(75)") == 75
    assert saved.exists()
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    assert run("rank and time.sleep(60); sys.exit(75)") == 75


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process_once(tmp_path: Path, number: int) -> None:
    body = f"""
count = []
def note(*_): count.append(1)
signal.signal({int(number)}, note)
open('{tmp_path}/ready%d' % rank, 'w').close()
for _ in range(600):
    time.sleep(0.05)
    if count: break
time.sleep(0.3)
sys.exit(75 if len(count) == 1 else 1)
"""

    def send() -> None:
        while len(list(tmp_path.glob("ready*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    sender = threading.Thread(target=send)
    sender.start()
    assert run(body) == 75
    sender.join()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_one_of_all_may_print_the_error(tmp_path: Path) -> None:
    body = f"""
try:
    os.close(os.open(os.environ['ROBUST_BITS_ERROR_CLAIM'], os.O_CREAT | os.O_EXCL))
    open('{tmp_path}/claimed%d' % rank, 'w').close()
except FileExistsError:
    pass
"""
    assert run(body, 3) == 0
    assert run(body, 1) == 0, "the next start has a claim of its own"
    assert len(list(tmp_path.iterdir())) in (1, 2)


def test_a_program_that_cannot_be_started() -> None:
    with pytest.raises(FileNotFoundError):
        run_processes(["/no/such/program"], 2)


def test_free_port() -> None:
    assert 1024 < free_port() < 65536


def test_is_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_worker()
    monkeypatch.setenv("RANK", "0")
    assert not is_worker(), "a rank of what?"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_worker()
