"""A web server on this machine that misbehaves on request, and shards to put behind it."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index import DatasetIndex
from data.shards import make


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


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """60 noise images of 3 classes in 6 shards of about 130 kB."""
    return make_noise(tmp_path_factory.mktemp("noise"), num_images=60, side=64, per_shard=10)


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """103 tiny images in 21 shards of 5, the last with 3."""
    return make_noise(tmp_path_factory.mktemp("dots"), num_images=103, side=4, per_shard=5)


def make_noise(root: Path, *, num_images: int, side: int, per_shard: int) -> DatasetIndex:
    random = np.random.default_rng(num_images)
    for number in range(num_images):
        folder = root / "tree" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return make(root / "tree", root / "train", split="train", samples_per_shard=per_shard)
