"""What a failure looks like: one line and exit code 2 for a user's mistake, a traceback for a bug."""

import errno
import os
import select
import sys
import tempfile
import time
from collections.abc import Callable

EXIT_DONE, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130
ERROR_CLAIM = "ROBUST_BITS_ERROR_CLAIM"  # a path; of several processes the first to make it prints the error
OUTSIDE_JOB = ("MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
STARTED = time.time()
PEER_WAIT_S = 5.0  # how long a process waits for another one's error line, which explains its own failure
OWN_PACKAGES = ("bits", "data", "models", "robust", "engine")
OS_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space there",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a place that can be written",
}


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`. What a user can cause becomes one line; all else is a bug and is raised.

    ROBUST_BITS_TRACEBACK=1 in the environment raises all of it.
    """
    try:
        return action()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_DONE
        if os.environ.get("ROBUST_BITS_TRACEBACK"):
            raise
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in OWN_PACKAGES:
            raise
        return fail(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except RuntimeError as error:
        if "deterministic implementation" in str(error):
            # torch's own words name the operation; its advice, to switch the whole thing off, is the remedy too.
            return fail(
                ValueError(f"run.deterministic: {str(error).split('.')[0]}; set run.deterministic=false")
            )
        # A collective that fails because another process met a user's mistake: that one's line says it all.
        if os.environ.get("ROBUST_BITS_TRACEBACK") or not _peer_explains():
            raise
        return EXIT_USER_ERROR


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has left, as `| head` does; then nothing more is said there."""
    try:
        descriptor = sys.stdout.fileno()
        watch = select.poll()
        watch.register(descriptor, select.POLLOUT)
        is_left = any(event & select.POLLERR for _, event in watch.poll(0))
        if is_left:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # or Python complains at exit
    except (OSError, ValueError):
        return False
    return is_left


def fail(error: BaseException) -> int:
    """Prints the error as one line, once for all processes; its exit code."""
    if _claims_error():
        print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
    return exit_code_of(error)


def exit_code_of(error: BaseException) -> int:
    """That of a user's mistake, unless the error has one of its own."""
    return int(getattr(error, "exit_code", EXIT_USER_ERROR))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"{text} for {sys.executable}; run `make .venv` and start with .venv/bin/python"
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}{error.strerror}; {OS_REMEDIES.get(error.errno, 'give another path')}"
    return text


def _claims_error() -> bool:
    """Whether this process is the one that prints: the first of its job that made the claim's file."""
    path = _claim_path()
    if path is None:
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return not _is_claimed(path)
    except OSError:  # the launcher is gone, and its folder with it
        return True
    return True


def _claim_path() -> str | None:
    """A file of our launcher, which removes it; under another one, its process id and port name the file."""
    if ERROR_CLAIM in os.environ or "RANK" not in os.environ:
        return os.environ.get(ERROR_CLAIM)
    parts = (str(os.getppid()), *(os.environ.get(name, "") for name in OUTSIDE_JOB))
    return os.path.join(tempfile.gettempdir(), f"robust-bits-error-{'-'.join(parts)}")


def _is_claimed(path: str) -> bool:
    try:
        # A file that an earlier job of the same numbers left behind must not silence this one.
        return os.stat(path).st_mtime > STARTED - 60
    except OSError:
        return False


def _peer_explains() -> bool:
    """Whether another process of the job prints the error that made this one fail."""
    path, deadline = _claim_path(), time.monotonic() + PEER_WAIT_S
    while path is not None and time.monotonic() < deadline:
        if _is_claimed(path):
            return True
        time.sleep(0.05)
    return False
