"""Notice that a machine is about to be taken away, where no signal says so: asked for every few seconds, when told to.

Google's machines (TPU VMs among them) tell it on a web server that only they can reach; other clusters write a file.
A watch asks whatever `run.maintenance_event` names, and never anything else.
"""

import threading
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from engine.stop import StopRequest

GCE = "gce"  # stands for the two addresses below
GCE_URLS = tuple(
    f"http://metadata.google.internal/computeMetadata/v1/instance/{key}"
    for key in ("maintenance-event", "preempted")
)
QUIET = ("", "none", "false", "0")  # what a file or an answer says while nothing is coming
TIMEOUT_S, EVERY_S = 2.0, 5.0
MOST_BYTES = 200
# Not through a proxy of the environment: the address means this machine.
_OPEN = build_opener(ProxyHandler({})).open


class MaintenanceWatch:
    """Asks `stop` to stop once an event is there; a thread of its own for the length of a `with`.

    `where` is a file, an http address, `gce`, or None, which watches nothing. An address that does not answer is
    told to `warn` once and asked again all the same: it may come back.
    """

    def __init__(
        self,
        where: str | None,
        stop: StopRequest,
        *,
        warn: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        """ValueError for a file in a folder that does not exist: it could never appear."""
        self._places = () if where is None else GCE_URLS if where == GCE else (where,)
        self._stop, self._warn, self._every_s = stop, warn, every_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        for place in self._places:
            if not _is_address(place) and not Path(place).absolute().parent.is_dir():
                raise ValueError(
                    f"run.maintenance_event {place}: its folder does not exist; give a file that somebody will write, "
                    f"an http address, or {GCE}"
                )

    def __enter__(self) -> "MaintenanceWatch":
        if self._places and not self._look(warn=True):
            self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            if self._look(warn=False):
                return

    def _look(self, *, warn: bool) -> bool:
        """Whether an event is there now."""
        for place in self._places:
            try:
                event = read_event(place)
            except (OSError, HTTPException) as error:  # a timeout and a refusal are OSErrors too
                reason = error.reason if isinstance(error, URLError) else error
                if warn:
                    self._warn(
                        f"run.maintenance_event: no answer from {place} ({reason}); nothing will announce that this "
                        "machine is taken away, unless it answers later"
                    )
                continue
            if event:
                self._stop.ask(f"maintenance event {event}")
                return True
        return False


def read_event(place: str) -> str:
    """What `place` announces, in one word or a few; empty when nothing, or when a file is not there.

    OSError, or HTTPException, where an address does not answer.
    """
    if _is_address(place):
        with _OPEN(Request(place, headers={"Metadata-Flavor": "Google"}), timeout=TIMEOUT_S) as answer:
            text = answer.read(MOST_BYTES)
    else:
        try:
            with open(place, "rb") as file:
                text = file.read(MOST_BYTES) or b"file"  # an empty file announces by being there
        except FileNotFoundError:
            return ""
    words = " ".join(text.decode(errors="replace").split())
    return "" if words.lower() in QUIET else words


def _is_address(place: str) -> bool:
    return place.startswith(("http://", "https://"))
