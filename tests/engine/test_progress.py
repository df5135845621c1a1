"""What a person sees: a bar on a terminal that stays whole, plain lines elsewhere, nothing that costs a run."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.log import RunLog, open_log, read_log
from engine.progress import BarProgress, Pace, PlainProgress, open_progress

ROOT = Path(__file__).parents[2]
REPORT = {"epoch": 0.5, "loss": 1.25, "lr": 1e-3, "images_per_s": 640.0}


class Terminal:
    """A pseudo terminal, and what somebody in front of it sees."""

    def __init__(self, columns: int = 100) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.raw = ""
        self.attach: Callable[[], None] = lambda: None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self.raw += os.read(self.master, 65536).decode()
            except OSError:  # the other side has closed it
                return

    def seen(self) -> str:
        """The raw output, when nothing more comes."""
        length = -1
        while length < len(self.raw):
            length = len(self.raw)
            time.sleep(0.05)
        return self.raw

    def screen(self) -> list[str]:
        """The lines as the control codes leave them. Unknown codes are an error of this test."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.seen()):
            if token.startswith("\x1b"):
                if token.endswith("A"):
                    row -= int(token[2:-1] or 1)
                elif token == "\x1b[2K":
                    lines[row] = ""
                else:
                    assert token.endswith("m"), f"unknown code {token!r}"
            elif token == "\r":
                column = 0
            elif token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            else:
                lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
                column += len(token)
        return [line for line in lines if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 100 columns; `terminal.attach()` in the test puts stderr on it."""
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("CI", "NO_COLOR", "LINES"):
        monkeypatch.delenv(name, raising=False)
    stream = os.fdopen(found.slave, "w", encoding="utf-8")
    # In the test, because pytest takes stderr anew between a fixture and its test.
    found.attach = lambda: monkeypatch.setattr(sys, "stderr", stream)
    yield found
    with contextlib.suppress(OSError):  # where the test closed the other side
        stream.close()


# ---- where a bar is shown


def test_a_bar_on_a_terminal_only(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.attach()
    assert isinstance(open_progress(quiet=False), BarProgress)
    assert isinstance(open_progress(quiet=True), PlainProgress)
    for name, value in (("TERM", "dumb"), ("TERM", ""), ("CI", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert isinstance(open_progress(quiet=False), PlainProgress), name
    with open(os.devnull, "w") as nowhere, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", nowhere)
        assert isinstance(open_progress(quiet=False), PlainProgress)


def test_closed_stderr_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = open_progress(quiet=False)
    assert isinstance(progress, PlainProgress)


# ---- plain


def test_plain_lines_and_quiet_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, wanted in ((False, "started\nstep 1\nresult\n"), (True, "result\n")):
        with open_log(tmp_path / "log.jsonl", 0, quiet=quiet) as log:
            log.say("started")
            log.reached(1, 10)
            log.report("step 1", {"step": 1, **REPORT})
            log.judged("clean", 4, 8)
            log.say("result", important=True)
        assert capsys.readouterr() == ("", wanted)
    assert [entry["event"] for entry in read_log(tmp_path / "log.jsonl")] == ["train"] * 2


def test_other_ranks_have_neither_bar_nor_lines(terminal: Terminal, tmp_path: Path) -> None:
    terminal.attach()
    with open_log(tmp_path / "log.jsonl", 1, quiet=False) as log:
        log.say("hello", important=True)
        log.reached(1, 10)
        log.judged("clean", 1, 2)
        log.report("step", {"step": 1, **REPORT})
    assert terminal.seen() == ""
    assert not list(tmp_path.iterdir())


# ---- the bar


def test_lines_stand_above_the_bar_and_the_bar_goes(terminal: Terminal, tmp_path: Path) -> None:
    terminal.attach()
    log = RunLog(tmp_path / "log.jsonl", progress=BarProgress())
    log.reached(0, 20)
    log.say("started: [a/b] 100 %")
    for step in range(1, 11):
        log.reached(step, 20)
        log.report(f"report {step}", {"step": step, **REPORT, "epoch": step / 5})
    print("somebody's warning", file=sys.stderr)
    time.sleep(0.7)  # a refresh
    *lines, bar = terminal.screen()
    assert lines == [
        *("started: [a/b] 100 %", "report 1", "report 5", "report 10"),  # one an epoch
        "somebody's warning",
    ]
    assert re.fullmatch(r"train \S+  10/20  ETA \S+  loss 1.2500  640 images/s  lr 1.00e-03 *", bar), bar
    log.judged("clean", 30, 90)
    time.sleep(0.7)
    assert re.fullmatch(r"clean \S+  30/90  ETA -:-- *", terminal.screen()[-1])
    log.say("clean 90 %")
    log.close(exit_code=0)
    log.close(exit_code=0)
    assert terminal.screen() == [*lines, "clean 90 %"], "the bar went"
    assert "\x1b[?25" not in terminal.raw, "a hidden cursor stays hidden after kill -9"
    print("afterwards", file=sys.stderr, flush=True)
    assert terminal.screen()[-1] == "afterwards"


def interrupt(log: RunLog) -> None:
    log.reached(1, 2)
    raise KeyboardInterrupt


def test_the_bar_goes_when_the_run_fails(terminal: Terminal, tmp_path: Path) -> None:
    terminal.attach()
    threads = threading.active_count()
    log = RunLog(tmp_path / "log", progress=BarProgress())
    with pytest.raises(KeyboardInterrupt), log:
        interrupt(log)
    assert terminal.screen() == []
    assert threading.active_count() == threads, "the thread that draws has ended"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_the_bar_is_one_line(columns: int, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.attach()
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = BarProgress()
    progress.report("", REPORT)
    progress.advance("train", 123_456, 1_234_567)
    time.sleep(0.1)
    (bar,) = terminal.screen()
    progress.close()
    assert len(bar.rstrip()) <= columns
    facts = ["ETA", "loss", "images/s", "lr"]
    shown = [fact in bar for fact in facts]
    assert shown == sorted(shown, reverse=True), f"the last facts go first: {bar}"
    assert sum(shown) >= {20: 0, 40: 0, 60: 1, 80: 2, 200: 4}[columns], bar


def test_no_color_means_none(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.attach()
    monkeypatch.setenv("NO_COLOR", "1")
    progress = BarProgress()
    progress.advance("train", 5, 10)
    progress.close()
    assert "5/10" in terminal.seen()
    assert not re.findall(r"\x1b\[[\d;]*3\dm|\x1b\[[\d;]*9\dm|38;", terminal.raw)


def test_a_closed_terminal_costs_nothing(terminal: Terminal) -> None:
    terminal.attach()
    progress = BarProgress()
    progress.advance("train", 1, 10)
    terminal.seen()
    os.close(terminal.master)
    for step in range(2, 5):
        progress.advance("train", step, 10)
        progress.report("report", {**REPORT, "epoch": step})
        progress.say("line", important=True)
        time.sleep(0.3)
    progress.close()


# ---- pace


def test_pace_leaves_out_the_first_steps() -> None:
    pace = Pace()
    assert pace.per_s() is None
    now = 0.0
    for done in range(40):
        now += 60.0 if done < 2 else 0.5  # two that compile
        pace.add(done, now)
        if done == 1:
            assert pace.left_s(done, 40) is None
    assert pace.per_s() == pytest.approx(2.0)
    assert pace.left_s(40, 100) == pytest.approx(30.0)


def test_pace_is_that_of_late_and_survives_a_pause() -> None:
    pace = Pace(window_s=10.0, skip=0)
    for done in range(100):
        pace.add(done, float(done))
    for tick in range(1, 201):
        pace.add(100 + tick, 99 + tick * 0.25)
    assert pace.per_s() == pytest.approx(4.0)
    pace.pause()
    assert pace.per_s() == pytest.approx(4.0), "the old one, until there is a new one"
    pace.add(301, 500.0)
    pace.add(302, 501.0)
    assert pace.per_s() == pytest.approx(1.0), "the pause itself does not count"


def test_pace_of_very_many_steps_stays_small() -> None:
    pace = Pace(skip=0)
    for done in range(100_000):
        pace.add(done, done / 5000)
    assert len(pace._seen) < 500
    assert pace.per_s() == pytest.approx(5000, rel=0.01)


# ---- a whole run


def wait_for(process: "subprocess.Popen[Any]", log: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and any(entry.get("step", -1) >= step for entry in read_log(log)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached, exit code {process.poll()}")


def test_ctrl_c_on_a_terminal_leaves_it_as_it_was(few_digits: Path, tmp_path: Path) -> None:
    terminal, run = Terminal(), tmp_path / "run"
    before = termios.tcgetattr(terminal.slave)
    words = [f"data.train={few_digits}", "data.val=null", "evals=[]", "data.num_workers=0"]
    words += ["run.epochs=2000", "run.batch_size=32", "run.report_every=2", "run.checkpoint_every=100000"]
    command = [sys.executable, str(ROOT / "launch_gpu.py"), "--cpu", "train"]
    command += [str(ROOT / "recipes/quickstart/cnn_clean.yaml"), *words, "--output", str(run)]
    outer = {
        k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "RANK", "WORLD_SIZE")
    }
    process = subprocess.Popen(
        command,
        env=outer | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal.slave,
        start_new_session=True,
        cwd=ROOT,
    )
    wait_for(process, run / "log.jsonl", 6)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    screen = terminal.screen()
    assert process.returncode == 75, screen
    assert output == b"", "progress is on stderr"
    assert re.search(r"train .*/4000  ETA", terminal.raw), "there was a bar"
    assert screen[0].startswith("started: ")
    assert screen[-1].startswith("stopped at step ")
    assert termios.tcgetattr(terminal.slave) == before
    os.close(terminal.slave)
