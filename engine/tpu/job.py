"""One step compiled for one topology: exported here, compiled by another Python, answered from the cache if it can be.

Two processes do the work, and both have a time limit: `engine.tpu.export`, with virtual CPU devices in the place of
the TPU's, and `engine/tpu/compiler.py`, one at a time on a machine, because libtpu takes a lock of its own and dies
where another holds it. What a compile gave is kept under the hash of everything that it was made of.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.lock import Lock, place
from engine.tpu.answer import assemble
from engine.tpu.environment import PINS, cache_root, open_environment
from engine.tpu.export import EXIT_FALLBACKS
from engine.tpu.topology import Topology

ROOT = Path(__file__).parents[2]
COMPILER = Path(__file__).with_name("compiler.py")
NICENESS = 10
EXPORT_LIMIT_S, COUNT_LIMIT_S = 900.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be compiled, and for how long at most."""

    recipe: Path
    words: Sequence[str]  # overrides, the batch among them
    topology: Topology
    batch_per_device: int
    timeout_s: float


def compile_step(order: Order, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The compiler's answer, see answer.py. ValueError in one line for a recipe, machine or time limit that lets
    none come about; a step that the compiler refuses is an answer."""
    with tempfile.TemporaryDirectory(prefix="tpu-check-") as name:
        _export(order, Path(name))
        exported: dict[str, Any] = json.loads((Path(name) / "export.json").read_text())
        folder = keep(Path(name), exported, order.topology)
    wanted = [folder / f"graph-{number}.json" for number in range(len(exported["graphs"]))]
    if all(path.exists() for path in wanted):
        say(f"compiled before: {folder}")
    else:
        _compile(open_environment(say), folder, order, say)
    return assemble(order, exported, folder)


def keep(source: Path, exported: Mapping[str, Any], topology: Topology) -> Path:
    """The exported step's folder in the cache: named by what decides the answer, so it may hold one already."""
    decides = [
        exported["sha256"],
        exported["graphs"],
        topology.name,
        topology.config,
        PINS,
        COMPILER.read_text(),
    ]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:20]
    folder = cache_root() / "tpu-check-answers" / key
    if not folder.exists():
        made = folder.with_name(f"{key}.making.{os.getpid()}")
        made.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            (made / path.name).write_bytes(path.read_bytes())
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def _export(order: Order, folder: Path) -> None:
    asked = {"recipe": str(order.recipe), "words": list(order.words), "folder": str(folder)}
    devices = order.topology.num_devices
    done = _run_export(asked | {"num_devices": devices}, devices)
    if done.code in (EXIT_FALLBACKS, -signal.SIGSEGV, -signal.SIGABRT):
        # What the recording process could not say: see bits/xla_export.py.
        counts = _counted(asked, folder)
        if counts != {}:
            raise ValueError(_left_to_host(counts, _where(done.errors)))
    if done.code:
        raise ValueError(_own_line(done.errors, f"the step cannot be exported (exit code {done.code})"))


def _counted(asked: Mapping[str, Any], folder: Path) -> dict[str, int] | None:
    """Operations left to the host and how often; None where that is not known in time."""
    try:
        done = _run_export({**asked, "counts": True}, 1, limit_s=COUNT_LIMIT_S)
    except ValueError:
        return None
    found: dict[str, int] = json.loads((folder / "fallbacks.json").read_text()) if done.code == 0 else {}
    return found


def _run_export(asked: Mapping[str, Any], num_devices: int, *, limit_s: float = EXPORT_LIMIT_S) -> "Done":
    command = [sys.executable, "-X", "faulthandler", "-m", "engine.tpu.export", json.dumps(asked)]
    extra = {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(num_devices),
        "OMP_NUM_THREADS": "1",  # values are hardly ever made
        "XLA_TRIM_GRAPH_SIZE": str(1 << 30),  # a graph is not to be cut by its size
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    return run_limited(command, limit_s=limit_s, extra=extra, what="exporting the step")


def _left_to_host(counts: Mapping[str, int] | None, where: str | None) -> str:
    names = "an operation or a read"
    if counts is not None:
        names = ", ".join(f"{name} {count}x" for name, count in sorted(counts.items()))
    place = "" if where is None else f", first at {where}"
    return f"the step needs the host: {names}{place}; use operations that XLA has, of static shapes, and read nothing"


def _where(errors: str) -> str | None:
    """The line at which a process crashed, as faulthandler tells it: the innermost that is not torch's."""
    _, _, thread = errors.partition("Current thread")
    frames = re.findall(r'File "(.*?)", line (\d+) in (\S+)', thread)
    for path, line, function in frames:
        short = path.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
        # In the attack torch comes back to us with every operation.
        if not short.startswith(("torch", "bits/xla")) and function != "__torch_function__":
            return f"{short}:{line} ({function})"
    return None


def _compile(python: Path, folder: Path, order: Order, say: Callable[[str], None]) -> None:
    asked = {
        "folder": str(folder),
        "topology": order.topology.name,
        "config": order.topology.config,
    }
    lock = Lock(cache_root() / "locks" / f"tpu-check.{place()}")
    if holder := lock.holder():
        say(f"another tpu-check compiles ({holder}): waiting for it")
    begun = time.monotonic()
    try:
        with lock.held(order.timeout_s):
            say(f"compiling for {order.topology.name}: minutes, at most {order.timeout_s / 60:.0f}")
            # libtpu's own lock would stop us beside a program that uses the chips of this machine; we use none.
            extra = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
            done = run_limited(
                [str(python), str(COMPILER), json.dumps(asked)],
                limit_s=max(1.0, order.timeout_s - (time.monotonic() - begun)),
                extra=extra,
                what=f"compiling for {order.topology.name}",
            )
    except TimeoutError as error:
        raise ValueError(f"another tpu-check runs: {error}") from None
    if done.code:
        raise ValueError(
            _last_words(done.errors, f"the TPU compiler died (exit code {done.code}) and said nothing")
        )


@dataclass(frozen=True, slots=True)
class Done:
    """How a child ended, and the end of what it said on stderr."""

    code: int
    errors: str


def run_limited(command: Sequence[str], *, limit_s: float, extra: Mapping[str, str], what: str) -> Done:
    """Runs a child to its end, nicely. ValueError behind the time limit; whatever happens, the child is gone."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | dict(extra),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # its own children go with it
            preexec_fn=lambda: os.nice(NICENESS) and None,
        )
        try:
            with _terminated_as_interrupted():
                code = child.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{what} was not done after {limit_s:.0f} s; give it more: --timeout") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        errors.seek(0)
        return Done(code, errors.read().decode(errors="replace")[-20_000:])


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM would end this process and leave the child, which has a session of its own."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _own_line(errors: str, otherwise: str) -> str:
    """The one line of a program of ours."""
    lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else _last_words(errors, otherwise)


def _last_words(errors: str, otherwise: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return f"{otherwise}: {lines[-1]}" if lines else otherwise
