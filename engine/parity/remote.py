"""A session in a process of its own, because a backend is decided when it is imported: `-m engine.parity.remote`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from engine.parity.side import Side

ROOT = Path(__file__).parents[2]
READY, DONE = "ready ", "done "


class Remote:
    """Starts a side's process and has it run updates; the same verbs as a Session."""

    def __init__(
        self,
        side: Side,
        number: int,
        recipe: Path,
        overrides: Sequence[str],
        *,
        num_steps: int,
        exchange: Path,
    ) -> None:
        self.side = side
        job = {
            "backend": side.backend,
            "num_devices": side.num_devices,
            "changes": side.overrides,
            "number": number,
            "recipe": str(recipe),
            "overrides": list(overrides),
            "num_steps": num_steps,
            "exchange": str(exchange),
        }
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.parity.remote", json.dumps(job)],
            env=_environment(side),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Waits until the side stands. ValueError in one line where it cannot."""
        found: dict[str, Any] = json.loads(self._answer(READY))
        return found

    def run(self, number: int) -> None:
        """As Session.run."""
        assert self._process.stdin is not None, "a pipe was asked for"
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        self._answer(DONE)

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None, "a pipe was asked for"
        line = self._process.stdout.readline()
        if line.startswith(word):
            return line.removeprefix(word).strip()
        self._process.communicate()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else ""
        )
        if self._process.returncode == 2:
            raise ValueError(f"{self.side.label}: {said.removeprefix('error: ')}")
        raise ChildProcessError(f"{self.side.label} ended with exit code {self._process.returncode}: {said}")

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()


def _environment(side: Side) -> dict[str, str]:
    """One process, its own checkout first; XLA on the cpu where no chip and no wish says otherwise."""
    outer = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    outer["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    outer["PYTHONUNBUFFERED"] = "1"
    if side.backend != "xla":
        return outer
    if "PJRT_DEVICE" not in outer and not _has_chips():
        outer["PJRT_DEVICE"] = "CPU"
    if outer.get("PJRT_DEVICE") == "CPU":
        outer["CPU_NUM_DEVICES"] = str(side.num_devices)
    outer.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return outer


def _has_chips() -> bool:
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def serve(job: dict[str, Any], answers: IO[str]) -> int:
    """The child's side: an update for each line on stdin."""
    from engine.parity.session import Session

    side = Side(backend=job["backend"], num_devices=job["num_devices"], overrides=tuple(job["changes"]))
    session = Session(
        side,
        job["number"],
        Path(job["recipe"]),
        job["overrides"],
        num_steps=job["num_steps"],
        exchange=Path(job["exchange"]),
    )
    print(f"{READY}{json.dumps(session.facts)}", file=answers, flush=True)
    for line in sys.stdin:
        session.run(int(line))
        print(f"{DONE}{line.strip()}", file=answers, flush=True)
    session.close()
    return 0


def main(argument: str) -> int:
    """Exit code; 2 and one line on stderr for what a user can mend."""
    from engine.failure import guarded
    from engine.launch import hush

    hush()
    # Whatever a library says on stdout must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return guarded(lambda: serve(json.loads(argument), answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
