"""Children with limits, one compile at a time, answers kept. The compiler here only pretends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data.lock import Lock, place
from engine.tpu import job
from engine.tpu.environment import cache_root
from engine.tpu.export import EXIT_FALLBACKS
from engine.tpu.topology import find_topology

# Says that it ran, and answers as the real one would.
COMPILER = """
import json, os, pathlib, sys, time
order = json.loads(sys.argv[1])
folder = pathlib.Path(order["folder"])
open(os.environ["RUNS"], "a").write(order["topology"] + chr(10))
time.sleep(float(os.environ.get("SLEEP", "0")))
if os.environ.get("DIES"):
    sys.stderr.write("F0000 libtpu.so" + chr(10) + "Check failed: it is so" + chr(10))
    os._exit(134)
memory = dict(argument=1, output=1, alias=0, temp=1, code=1, peak=1)
for number, graph in enumerate(json.loads((folder / "export.json").read_text())["graphs"]):
    facts = dict(ok=True, error=None, memory=memory, flops=7.0, bytes=1.0, compile_s=1.0, compile_cpu_s=1.0)
    facts |= dict(host_peak_bytes=1, versions={"jax": "0"})
    (folder / f"graph-{number}.json").write_text(json.dumps(facts))
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pretended compiler says that it ran."""
    compiler = tmp_path / "compiler.py"
    compiler.write_text(COMPILER)
    monkeypatch.setattr(job, "COMPILER", compiler)
    monkeypatch.setattr(job, "open_environment", lambda say: Path(sys.executable))
    monkeypatch.setattr(job, "_run_export", lambda asked, devices, **limit: export(Path(asked["folder"])))
    monkeypatch.setenv("ROBUST_BITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def export(folder: Path, program: bytes = b"program") -> job.Done:
    (folder / "graph-0.stablehlo").write_bytes(program)
    graph = {"file": "graph-0.stablehlo", "count": 1, "donated": [], "divided": [], "state_tensors": 0}
    facts = {
        "graphs": [graph],
        "sha256": program.hex(),
        "precision": "bf16",
        "accumulate": 1,
        "teacher": None,
    }
    facts |= {"fallbacks": {}, "export_s": 0.1, "versions": {}}
    (folder / "export.json").write_text(json.dumps(facts))
    return job.Done(0, "")


def order(topology: str = "v5e:2x4", **changes: Any) -> job.Order:
    settings: dict[str, Any] = {
        "recipe": Path("r.yaml"),
        "words": [],
        "batch_per_device": 64,
        "timeout_s": 30.0,
    }
    return job.Order(topology=find_topology(topology), **(settings | changes))


def silent(text: str) -> None: ...


def test_a_step_is_compiled_once_for_a_topology(runs: Path) -> None:
    said: list[str] = []
    first = job.compile_step(order(), said.append)
    assert first["ok"]
    assert first["flops"] == 7.0
    assert job.compile_step(order(), said.append)["flops"] == 7.0
    assert runs.read_text() == "v5e:2x4\n"
    assert "compiled before" in said[-1]
    job.compile_step(order("v6e:2x4"), silent)
    assert runs.read_text() == "v5e:2x4\nv6e:2x4\n"


def test_another_program_is_another_answer(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job.compile_step(order(), silent)
    monkeypatch.setattr(job, "_run_export", lambda asked, devices: export(Path(asked["folder"]), b"other"))
    job.compile_step(order(), silent)
    assert runs.read_text().count("v5e") == 2


def test_a_compiler_that_dies_is_one_line_and_no_answer(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIES", "1")
    with pytest.raises(ValueError, match=r"died.*Check failed: it is so$"):
        job.compile_step(order(), silent)
    monkeypatch.delenv("DIES")
    assert job.compile_step(order(), silent)["ok"]


def test_a_compile_that_takes_too_long_is_ended(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEP", "60")
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"not done after 1 s; give it more: --timeout"):
        job.compile_step(order(timeout_s=1.0), silent)
    assert time.monotonic() - begun < 20


def test_the_second_waits_and_says_for_whom(runs: Path) -> None:
    other = Lock(cache_root() / "locks" / f"tpu-check.{place()}")
    said: list[str] = []
    assert other.acquire()
    with pytest.raises(ValueError, match=rf"another tpu-check runs: process {os.getpid()} has held"):
        job.compile_step(order(timeout_s=0.3), said.append)
    assert any("waiting for it" in line and f"process {os.getpid()}" in line for line in said)
    assert not runs.exists()
    other.release()
    assert job.compile_step(order(), silent)["ok"]


def test_a_child_is_ended_with_its_own_children(tmp_path: Path) -> None:
    grandchild = tmp_path / "pid"
    program = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(grandchild)!r}, 'w').write(str(p.pid)); p.wait()"
    )
    with pytest.raises(ValueError, match="naps was not done after 2 s"):
        job.run_limited([sys.executable, "-c", program], limit_s=2.0, extra={}, what="naps")
    assert is_gone(int(grandchild.read_text()))


def test_sigterm_ends_the_child_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import sys; from engine.tpu.job import run_limited; "
        f"run_limited([sys.executable, '-c', {child!r}], limit_s=60, extra={{}}, what='it')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=job.ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=30) != 0
    assert is_gone(int(pid.read_text()))


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # killed; nobody here has to bury it
            return True
        time.sleep(0.05)
    return False


def test_a_child_is_nice_and_its_words_come_back() -> None:
    program = "import os, sys; sys.stderr.write(f'nice {os.nice(0)} {os.environ[\"WORD\"]}'); sys.exit(5)"
    found = job.run_limited([sys.executable, "-c", program], limit_s=30, extra={"WORD": "x"}, what="it")
    assert (found.code, found.errors) == (5, f"nice {min(19, os.nice(0) + job.NICENESS)} x")


CRASH = """some warning
Fatal Python error: Segmentation fault

Thread 0x00007f1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 10 in wait

Current thread 0x00007f2 (most recent call first):
  File "/x/site-packages/torch/nn/functional.py", line 4700 in interpolate
  File "{root}/robust/gradient.py", line 78 in __torch_function__
  File "/x/site-packages/timm/models/crossvit.py", line 281 in scale_image
  File "{root}/models/pixel.py", line 40 in forward
"""


@pytest.mark.parametrize(
    ("code", "counts", "says"),
    [
        (
            -11,
            {"aten::nonzero": 3, "aten::index": 1},
            "host: aten::index 1x, aten::nonzero 3x, first at timm/models/crossvit.py:281 (scale_image)",
        ),
        (EXIT_FALLBACKS, {"aten::nonzero": 3}, "aten::nonzero 3x"),
        (-11, None, "host: an operation or a read, first at timm"),
        (-11, {}, "cannot be exported (exit code -11)"),
        (1, {}, "cannot be exported (exit code 1)"),
    ],
)
def test_a_step_that_needs_the_host(
    runs: Path, monkeypatch: pytest.MonkeyPatch, code: int, counts: dict[str, int] | None, says: str
) -> None:
    def run(asked: Mapping[str, Any], devices: int, *, limit_s: float = 0.0) -> job.Done:
        if not asked.get("counts"):
            return job.Done(code, CRASH.format(root=job.ROOT))
        assert devices == 1
        if counts is None:
            raise ValueError("not done in time")
        (Path(asked["folder"]) / "fallbacks.json").write_text(json.dumps(counts))
        return job.Done(0, "")

    monkeypatch.setattr(job, "_run_export", run)
    with pytest.raises(ValueError, match="the step") as refused:
        job.compile_step(order(), silent)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not runs.exists()


def test_a_mistake_in_the_recipe_is_said_as_the_child_said_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = job.Done(2, "W: a warning\nerror: norm_stats 'ghost:32': 9 images do not split\n")
    monkeypatch.setattr(job, "_run_export", lambda asked, devices: said)
    with pytest.raises(ValueError, match=r"^norm_stats 'ghost:32': 9 images do not split$"):
        job.compile_step(order(), silent)
