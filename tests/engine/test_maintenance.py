"""A machine's own notice that it goes away: read from files and addresses, and what it does to a run on XLA."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bits.checkpoint import latest_checkpoint
from engine import maintenance
from engine.log import read_log
from engine.maintenance import MaintenanceWatch, read_event
from engine.recipe import RESUME_MAY_CHANGE
from engine.stop import StopRequest

ROOT = Path(__file__).parents[2]
RECIPE = """
data: {{train: {digits}/train, image_size: 16, num_workers: 0}}
model: {{name: small_cnn}}
optim: {{lr: 1e-3}}
run: {{epochs: 1000, batch_size: 64, report_every: 1, checkpoint_every: 100000, maintenance_event: {where}}}
"""


class Metadata:
    """A metadata server on this machine: `says` by key, 404 for others; who does not send the header is refused."""

    def __init__(self) -> None:
        self.says = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                key = self.path.rsplit("/", 1)[-1]
                outer.asked.append(key)
                is_known = key in outer.says and self.headers.get("Metadata-Flavor") == "Google"
                self.send_response(200 if is_known else 404)
                self.end_headers()
                self.wfile.write(outer.says.get(key, "").encode())

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    yield server
    server.close()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (None, ""),
        ("", "file"),  # `touch FILE`
        ("NONE\n", ""),
        ("false", ""),
        ("0", ""),
        ("TERMINATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
        ("node 7\ngoes down", "node 7 goes down"),
        ("x" * 10_000, "x" * maintenance.MOST_BYTES),
    ],
)
def test_what_a_file_announces(text: str | None, event: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "event").write_text(text)
    assert read_event(str(tmp_path / "event")) == event


def test_a_metadata_server_announces(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
    assert read_event(f"{metadata.url}/computeMetadata/v1/instance/maintenance-event") == ""
    metadata.says["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    assert read_event(f"{metadata.url}/maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE"
    with pytest.raises(OSError, match="404"):
        read_event(f"{metadata.url}/none-such")


def test_gce_asks_for_maintenance_and_for_preemption(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(url.startswith("http://metadata.google.internal/") for url in maintenance.GCE_URLS)
    keys = [url.rsplit("/", 1)[-1] for url in maintenance.GCE_URLS]
    monkeypatch.setattr(maintenance, "GCE_URLS", tuple(f"{metadata.url}/{key}" for key in keys))
    stop, warned = StopRequest(), list[str]()
    with MaintenanceWatch("gce", stop, warn=warned.append, every_s=0.01):
        wait_until(lambda: len(metadata.asked) > 6)
        assert not stop.asked
        metadata.says["preempted"] = "TRUE"
        wait_until(lambda: stop.asked)
    assert stop.reason == "maintenance event TRUE"
    assert set(metadata.asked) == {"maintenance-event", "preempted"}
    assert warned == []


def test_an_address_that_does_not_answer_is_named_once_and_asked_again(metadata: Metadata) -> None:
    del metadata.says["preempted"]
    stop, warned = StopRequest(), list[str]()
    with MaintenanceWatch(f"{metadata.url}/preempted", stop, warn=warned.append, every_s=0.01):
        wait_until(lambda: len(metadata.asked) > 3)
        assert len(warned) == 1
        assert warned[0].startswith(f"run.maintenance_event: no answer from {metadata.url}/preempted (")
        metadata.says["preempted"] = "TRUE"
        wait_until(lambda: stop.asked)


def test_nothing_is_asked_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(place: str) -> str:
        raise AssertionError(f"{place} was asked")

    monkeypatch.setattr(maintenance, "read_event", fail)
    before = threading.active_count()
    with MaintenanceWatch(None, StopRequest(), warn=fail):
        assert threading.active_count() == before


def test_an_event_that_is_there_already_stops_at_once_and_the_thread_ends(tmp_path: Path) -> None:
    before, stop = threading.active_count(), StopRequest()
    (tmp_path / "event").touch()
    with MaintenanceWatch(str(tmp_path / "event"), stop, warn=print):
        assert stop.asked
    quiet = StopRequest()
    with MaintenanceWatch(str(tmp_path / "other"), quiet, warn=print):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert not quiet.asked


def test_a_file_that_can_never_appear_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"run\.maintenance_event .*none/event: its folder does not exist; give"
    ):
        MaintenanceWatch(str(tmp_path / "none/event"), StopRequest(), warn=print)


def test_a_resumed_run_may_have_another_one() -> None:
    assert "run.maintenance_event" in RESUME_MAY_CHANGE


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_event_stops_a_run_on_xla_with_its_state_saved(
    devices: int,
    metadata: Metadata,
    digits: Path,
    tmp_path: Path,
    process_environment: Callable[..., dict[str, str]],
) -> None:
    recipe, log = tmp_path / "recipe.yaml", tmp_path / "run/log.jsonl"
    recipe.write_text(RECIPE.format(digits=digits, where=f"{metadata.url}/maintenance-event"))
    words = ["--num-devices", devices, "train", recipe, "--output", tmp_path / "run"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "launch_xla.py"), *map(str, words)],
        env=process_environment(XLA_FLAGS="--xla_backend_optimization_level=0"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            wait_until(
                lambda: process.poll() is not None or (log.exists() and len(read_log(log)) > 3), seconds=200
            )
            metadata.says["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
            _, errors = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 75, errors
    assert "(maintenance event TERMINATE_ON_HOST_MAINTENANCE), state saved; start again" in errors
    found, stopped = latest_checkpoint(tmp_path / "run/checkpoints"), read_log(log)[-1]
    assert found is not None
    assert stopped["event"] == "stop"
    assert found[0].step == stopped["step"] > 2
