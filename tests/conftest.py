"""Shared by all tests: shards of real digits made once a session, how to start a launcher, and a web server on this
machine that misbehaves on request.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards train/ (1,438 images, 3 shards) and val/ (359, 1 shard) of scanned digits at 32 px."""
    from data.digits import write_digits
    from data.shards import make

    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "images", size=32)
    for split in ("train", "val"):
        make(folder / "images" / split, folder / split, split=split, samples_per_shard=500)
    return folder


def launcher_environment(**extra: str) -> dict[str, str]:
    """One thread, XLA on the cpu, and no rank left over from an outer launcher."""
    outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return outer | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"} | extra


@pytest.fixture(scope="session")
def launch() -> Launch:
    """launch("gpu"|"xla", *words) runs a launcher to its end and gives exit code, stdout and stderr."""

    def run(kind: str, *words: str | Path, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / f"launch_{kind}.py"), *map(str, words)]
        return subprocess.run(
            command,
            env=launcher_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def process_environment() -> Callable[..., dict[str, str]]:
    """process_environment(NAME=value, ...) -> the environment for a worker program."""
    return launcher_environment


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a full queue would cost a client a second


@dataclass
class Request:
    name: str
    first: int | None  # of the Range header
    sent: int = 0  # counted before it is sent, so never behind the client


class Server:
    """Serves a folder. `fault(name, number)` says what goes wrong with the number-th request (from 0) of a file:
    '' nothing, '503', '404', 'cut:N' after N bytes, 'whole' (Range is ignored), 'slow:S' a pause each 16 kB,
    'silent', 'other' bytes of the same number, 'html' instead of the file, 'to:URL' a redirect, 'tag:T' an ETag;
    several joined by spaces.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, list[Request]()
        self.fault: Callable[[str, int], str] = lambda name, number: ""
        self._counts: dict[str, int] = {}
        self._mutex = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def requests(self, name: str = "") -> list[Request]:
        return [request for request in self.log if request.name.endswith(name)]

    def next_fault(self, name: str) -> dict[str, str]:
        with self._mutex:
            number = self._counts.get(name, 0)
            self._counts[name] = number + 1
        return dict((*word.split(":", 1), "")[:2] for word in self.fault(name, number).split())  # type: ignore[misc]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.server_state = server
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state, name = self.server_state, self.path.partition("?")[0].rsplit("/", 1)[-1]
        fault = state.next_fault(name)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.entry = Request(name, int(wanted[1]) if wanted else None)
        state.log.append(self.entry)
        with suppress(OSError):  # the client has gone
            self._answer(state.root / self.path.partition("?")[0].lstrip("/"), fault, wanted)

    def _answer(self, path: Path, fault: dict[str, str], wanted: re.Match[str] | None) -> None:
        if "silent" in fault:
            time.sleep(30)
        if "to" in fault:
            self.send_response(302)
            self.send_header("Location", fault["to"])
            self.end_headers()
            return None
        status = next((int(word) for word in fault if word.isdigit()), 200 if path.is_file() else 404)
        if status >= 400 or "html" in fault:
            return self._body(status, b"<html>no such thing</html>", fault)
        content = path.read_bytes()
        if "other" in fault:
            content = bytes(reversed(content))
        if wanted and "whole" not in fault:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            where = f"bytes {first}-{last}/{len(content)}"
            return self._body(206, content[first : last + 1], fault, where)
        return self._body(status, content, fault)

    def _body(self, status: int, content: bytes, fault: dict[str, str], where: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "text/html" if content[:6] == b"<html>" else "application/x-tar")
        if where:
            self.send_header("Content-Range", where)
        if "tag" in fault:
            self.send_header("ETag", fault["tag"])
        self.end_headers()
        content = content[: int(fault.get("cut", len(content)))]
        for start in range(0, len(content), 1 << 14):
            part = content[start : start + (1 << 14)]
            self.entry.sent += len(part)
            self.wfile.write(part)
            time.sleep(float(fault.get("slow", 0)))


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """serve(folder) -> a running Server."""
    servers: list[Server] = []

    def start(root: Path) -> Server:
        servers.append(Server(root))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
