"""The Python environment of the TPU compiler, made on first use: jax and libtpu of fixed versions, beside nothing else.

Their pins fight torch_xla's, so they do not go into the toolkit's own environment. It lies in
~/.cache/robust-bits/tpu-check-VERSIONS, or under ROBUST_BITS_CACHE, takes about 1 GiB, and is shared by all
checkouts. It gets its name when it is whole: a build that was killed leaves nothing that could be taken for one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from data.cache import FOLDER_VARIABLE
from data.lock import Lock, place

PINS: Final = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.51"}
BUILD_LIMIT_S = 1800.0
NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure",
    "ProxyError",
    "ConnectTimeout",
)
NO_WHEEL = ("No matching distribution", "Could not find a version")


def cache_root() -> Path:
    """Where tpu-check keeps what takes long to make."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "~/.cache/robust-bits").expanduser().absolute()


def place_of_environment() -> Path:
    """The folder of the environment for this Python, there or not."""
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    return cache_root() / f"tpu-check-jax{PINS['jax']}-libtpu{PINS['libtpu']}-{python}"


def open_environment(say: Callable[[str], None] = print) -> Path:
    """Its Python. ValueError in one line where it cannot be made."""
    folder = place_of_environment()
    python = folder / "bin" / "python"
    if python.exists():
        return python
    lock = Lock(folder.parent / "locks" / f"{folder.name}.{place()}")
    try:
        with lock.held(BUILD_LIMIT_S):
            if not python.exists():  # somebody else made it meanwhile
                say(f"making the environment of the TPU compiler, once, in {folder}")
                _make(folder)
    except TimeoutError as error:
        raise ValueError(f"the environment of tpu-check is not there: {error}") from None
    return python


def _make(folder: Path) -> None:
    for left in folder.parent.glob(f"{folder.name}.making.*"):  # of a build that was killed; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    made = folder.with_name(f"{folder.name}.making.{os.getpid()}")
    packages = [f"{name}=={version}" for name, version in PINS.items()]
    pip = [str(made / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", str(made)])
        _run([*pip, "install", "--quiet", "--no-input", *packages])
        # Tried, because a wheel of another libc installs and does not load. The folder may move: a venv finds itself
        # from its Python, and only that is used of it.
        _run([str(made / "bin" / "python"), "-c", "import jax, libtpu"])
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run(command: Sequence[str]) -> None:
    words = [os.path.basename(word) if "/" in word else word for word in command]
    # Not this process's own packages.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_LIMIT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(_refusal(words, f"not done after {BUILD_LIMIT_S:.0f} s", "")) from None
    if done.returncode:
        raise ValueError(_refusal(words, _last_line(done.stderr or done.stdout), done.stdout + done.stderr))


def _refusal(words: Sequence[str], line: str, output: str) -> str:
    pins = " ".join(f"{name}=={version}" for name, version in PINS.items())
    remedy = "see what that command says"
    if any(mark in output for mark in NO_NETWORK):
        remedy = (
            "there is no way to the package index; try again with a network, or set PIP_INDEX_URL to a mirror"
        )
    elif any(mark in output for mark in NO_WHEEL):
        remedy = f"no wheels for this Python and system; libtpu is for Linux on x86-64 ({pins})"
    elif "No space left" in output:
        remedy = f"free about 1 GiB, or set {FOLDER_VARIABLE} to a folder on another disk"
    elif "ensurepip" in output:
        remedy = "install the venv module of this Python (python3-venv)"
    return f"the environment of tpu-check cannot be made: `{' '.join(words)}`: {line}; {remedy}"


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "Error"))]
    return (errors or lines or ["no word"])[-1]
