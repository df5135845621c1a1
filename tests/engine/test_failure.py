"""What a failure looks like: one line from one process, or a traceback where it is a bug."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import failure
from engine.children import ROOT
from engine.failure import guarded


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", failure.ERROR_CLAIM, "ROBUST_BITS_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(failure, "PEER_WAIT_S", 0.2)


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("x is 3,\n  but must\tbe 4; use 4"), "x is 3, but must be 4; use 4"),
        (ValueError(), "ValueError"),
        (FileNotFoundError("recipe a does not exist; give a path"), "recipe a does not exist; give a path"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "a/b: No such file; check the path"),
        (OSError(errno.ENOSPC, "No space left", Path("d")), "d: No space left; free some space there"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; give another path"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"f"), "f: Not a directory; give another path"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec can't decode"),
    ],
)
def test_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(error)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert len(err.splitlines()) == 1


def test_a_missing_package_names_the_python_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(ModuleNotFoundError("No module named 'torch'", name="torch"))) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: No module named 'torch' for ")
    assert "run `make .venv` and start with .venv/bin/python" in err
    with pytest.raises(ModuleNotFoundError):  # a bug of ours
        guarded(raising(ModuleNotFoundError("No module named 'engine.x'", name="engine.x")))


@pytest.mark.parametrize("error", [TypeError("x"), AssertionError("x"), KeyError("x"), RuntimeError("x")])
def test_bugs_are_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(raising(error))


def test_everything_is_raised_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_BITS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="x"):
        guarded(raising(ValueError("x")))


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_of_our_processes_one_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(failure.ERROR_CLAIM, str(tmp_path / "claim"))
    for rank in ("1", "0", "2"):
        monkeypatch.setenv("RANK", rank)
        assert guarded(raising(ValueError("x"))) == 2
    assert capsys.readouterr().err == "error: x\n"
    # The collective of a process whose peer has ended fails; the peer's line says why.
    assert guarded(raising(RuntimeError("Connection closed by peer"))) == 2
    assert capsys.readouterr().err == ""
    os.unlink(tmp_path / "claim")
    with pytest.raises(RuntimeError):
        guarded(raising(RuntimeError("a bug")))
    monkeypatch.setenv(failure.ERROR_CLAIM, str(tmp_path / "gone" / "claim"))
    assert guarded(raising(ValueError("y"))) == 2
    assert capsys.readouterr().err == "error: y\n", "the launcher is gone: better twice than never"


def test_under_an_outside_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun's processes have its process id and port in common."""
    monkeypatch.setattr(failure.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("MASTER_PORT", "29500")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert guarded(raising(ValueError("x"))) == 2
    assert capsys.readouterr().err == "error: x\n"
    assert guarded(raising(RuntimeError("Connection closed by peer"))) == 2
    assert capsys.readouterr().err == ""
    (claim,) = tmp_path.iterdir()
    os.utime(claim, (0, 0))
    assert guarded(raising(ValueError("y"))) == 2
    assert capsys.readouterr().err == "error: y\n", "the file was an earlier job's"


def test_a_reader_that_leaves_is_no_mistake(process_environment: Callable[..., dict[str, str]]) -> None:
    """`list ... | head`: no error line, exit code 0; a broken pipe that is not stdout's stays an error."""
    program = "import sys; from engine.failure import guarded; sys.exit(guarded(lambda: {}))"
    loud = "[print('x' * 100, flush=True) for _ in range(100_000)] and 0"
    command = [sys.executable, "-c", program.format(loud)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 0
    other = "(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe'))"
    done = subprocess.run(
        [sys.executable, "-c", program.format(other)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Broken pipe" in done.stderr
