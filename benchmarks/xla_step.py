"""The train step on XLA:CPU beside the eager one: CPU-seconds of steps in turn, compile time apart.

    OMP_NUM_THREADS=1 python benchmarks/xla_step.py [--repeats 5] [MODEL ...]

Two processes, one for each backend, hold the same model and batch and make a step when they are told to: eager, XLA,
eager, XLA. Both are kept to one core, so that threads do not hide work, and CPU-seconds are those of the whole
process. Results are written after every row, and those of other models that were made today stay.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pgd_step import make_step, random_batch
from benchmarks.record import markdown_table, rows_of_today, write_result
from bits.environment import open_environment
from data.batch import Batch
from engine.knobs import feed_knobs, pack_knobs

MODELS = (  # name, pixels, batch
    ("small_cnn", 32, 32),
    ("resnet18", 112, 16),
    ("deit_tiny_patch16_224", 112, 16),
    ("convnext_atto", 112, 16),
    ("robust_resnet_dw_small", 64, 8),
)
ARMS = ("cpu", "xla")
WARM_UP = 2  # steps; the second one still compiles


def serve(backend: str) -> None:
    """A worker: a line of JSON in makes a step function, an empty line makes a step; a line of JSON out for each."""
    env = open_environment(backend)  # type: ignore[arg-type]
    step, batch = None, None
    for line in sys.stdin:
        before = env.counters()
        wall, cpu = time.perf_counter(), time.process_time()
        if line.strip():
            name, size, count, adversarial = json.loads(line)
            batch = random_batch(size, count)
            step = make_step(env, name, size, count, adversarial=adversarial)
            env.barrier()
        else:
            assert step is not None, "a step before its model"
            assert batch is not None, "a step before its batch"
            knobs = pack_knobs(lr=1e-4, eps=4 / 255, step_size=4 / 255, step=0)
            step(Batch(**env.feed(batch._asdict())), feed_knobs(env, knobs))
            env.barrier()
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        after = env.counters()
        took |= {name: after[name] - before[name] for name in ("compiles", "compile_ms")}
        print(f"> {json.dumps(took)}", flush=True)


class Arm:
    """One worker process."""

    script = Path(__file__)  # it takes --serve BACKEND

    def __init__(self, backend: str) -> None:
        environment = os.environ | {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, str(self.script), "--serve", backend]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("> "):
                found: dict[str, Any] = json.loads(answer[2:])
                return found
        raise RuntimeError("a worker ended; its error stands above")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(name: str, size: int, batch: int, *, adversarial: bool, repeats: int) -> dict[str, Any]:
    """Medians over steps in turn, behind a warm-up of each arm."""
    arms = {backend: Arm(backend) for backend in ARMS}
    try:
        for arm in arms.values():
            arm.ask(json.dumps([name, size, batch, adversarial]))
        warm = {backend: [arm.ask() for _ in range(WARM_UP)] for backend, arm in arms.items()}
        steps: dict[str, list[dict[str, Any]]] = {backend: [] for backend in ARMS}
        for _ in range(repeats):
            for backend, arm in arms.items():
                steps[backend].append(arm.ask())
    finally:
        for arm in arms.values():
            arm.close()
    assert not any(step["compiles"] for step in steps["xla"]), "a measured step compiled"
    ratios = [a["cpu_s"] / b["cpu_s"] for a, b in zip(steps["cpu"], steps["xla"], strict=True)]
    return {
        **{"model": name, "image_size": size, "batch": batch, "kind": "PGD-1" if adversarial else "clean"},
        **{f"{b}_cpu_s": statistics.median(s["cpu_s"] for s in steps[b]) for b in ARMS},
        **{f"{b}_wall_s": min(s["wall_s"] for s in steps[b]) for b in ARMS},
        **{"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)},
        "compile_s": sum(s["compile_ms"] for s in warm["xla"]) / 1000,
        "compiles": sum(s["compiles"] for s in warm["xla"]),
        "warm_up_cpu_s": sum(s["cpu_s"] for s in warm["xla"]),
    }


def write(rows: list[dict[str, Any]], repeats: int) -> str:
    """The result's text."""
    header = ["model", "px", "batch", "step", "eager CPU-s", "XLA CPU-s", "eager / XLA", "min", "max"]
    cells = [
        [r["model"], r["image_size"], r["batch"], r["kind"]]
        + [f"{r[name]:.3f}" for name in ("cpu_cpu_s", "xla_cpu_s")]
        + [f"{r[name]:.2f}" for name in ("ratio", "ratio_min", "ratio_max")]
        + [f"{r['compile_s']:.0f}", f"{r['warm_up_cpu_s']:.0f}"]
        for r in rows
    ]
    text = [
        f"Train steps in turn (eager, XLA), {repeats} pairs, AdamW, float32, one core for both; medians of",
        "CPU-seconds, the ratio pair by pair. Above 1 XLA is the faster. `compile` is wall time as torch_xla has it,",
        "on a machine that others use as well; `warm-up` are the CPU-seconds of the first two steps, which hold it.",
        "",
        *markdown_table([*header, "compile s", "warm-up CPU-s"], cells),
    ]
    title = "Train step on XLA:CPU beside eager cpu"
    return write_result("xla-step", title=title, text=text, data={"rows": rows}).read_text()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=[name for name, *_ in MODELS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", choices=ARMS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if arguments.serve:
        return serve(arguments.serve)
    order = {(name, kind): n for n, (name, *_) in enumerate(MODELS) for kind in ("clean", "PGD-1")}
    rows = {(row["model"], row["kind"]): row for row in rows_of_today("xla-step")}
    for name, size, batch in MODELS:
        if name in arguments.models:
            for adversarial in (False, True):
                row = measure(name, size, batch, adversarial=adversarial, repeats=arguments.repeats)
                rows[name, row["kind"]] = row
                sorted_rows = sorted(rows.values(), key=lambda r: order[r["model"], r["kind"]])
                print(write(sorted_rows, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
