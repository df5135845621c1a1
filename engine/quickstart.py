"""`make quickstart`: real digits to shards, four trainings, one table, and the same recipe once more on XLA.

Everything goes through the launchers, as a user would call them; a phase whose result is there is reused.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from engine.log import read_log

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/quickstart")
RECIPES = ("vit_adv", "vit_clean", "cnn_adv", "cnn_clean")  # the longest first, two at a time
PARALLEL = 2
COLUMNS = ("clean", "pgd5_linf16", "pgd20_linf16")
XLA_STEPS = 44
_print_lock = threading.Lock()


def main() -> int:
    """The exit code of the first phase that failed, or 0."""
    start = time.perf_counter()
    precision = "bf16" if has_bf16() else "float32"
    try:
        make_shards()
        say(f"training {len(RECIPES)} models in {precision}, {PARALLEL} at a time")
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda name: train(name, precision), RECIPES))
        print(table({name: read_results(FOLDER / name) for name in RECIPES}))
        train_on_xla()
    except subprocess.CalledProcessError as error:
        print(
            f"quickstart stopped: {' '.join(map(str, error.cmd))} ended with code {error.returncode}",
            file=sys.stderr,
        )
        return int(error.returncode)
    say(f"done in {time.perf_counter() - start:.0f} s; run folders are in {FOLDER}")
    return 0


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16, AMX or Arm's); emulation is far slower."""
    if platform.machine() in ("x86_64", "AMD64"):
        # oneDNN's own question also says yes to AVX-512 without bf16, which emulates it.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_shards() -> None:
    """Images, then shards; each folder appears whole or not at all, so what is there can be used."""
    images, shards = FOLDER / "digits", FOLDER / "shards"
    if not images.exists():
        launch("gpu", "digits", "shards", "digits", images)
    for split in ("train", "val"):
        if (shards / split / "index.json").exists():
            say(f"reusing {shards / split}")
            continue
        launch("gpu", "shards", "shards", "make", images / split, shards / split, "--samples-per-shard", 500)


def train(name: str, precision: str) -> None:
    """One training with its evaluations; goes on where an interrupted one stopped."""
    recipe = f"recipes/quickstart/{name}.yaml"
    launch("gpu", name, "train", recipe, f"run.precision={precision}", "--output", FOLDER / name)


def train_on_xla() -> None:
    """The CNN's adversarial recipe for two epochs through torch_xla (PJRT_DEVICE=CPU unless set)."""
    output = FOLDER / "xla_cnn_adv"
    evals = "evals=[{attack: pgd, norm: linf, eps: 16/255, step_size: 2/255, steps: 20, num_images: 64}]"
    words = (f"run.max_steps={XLA_STEPS}", "run.report_every=11", evals)
    launch("xla", "xla", "train", "recipes/quickstart/cnn_adv.yaml", *words, "--output", output)
    say(describe_compiles([e for e in read_log(output / "log.jsonl") if e["event"] == "train"]))


def describe_compiles(entries: list[dict[str, Any]]) -> str:
    """Compile time apart from step time, from the counters in the log."""
    first, last = next(entry for entry in entries if entry["step"] >= 2), entries[-1]
    late = last["compiles"] - first["compiles"]
    return (
        f"XLA: {last['compiles']} graphs compiled in {last['compile_ms'] / 1000:.1f} s, {late} of them after the "
        f"second update; {1000 * last['step_s']:.0f} ms a step since, {last['fallbacks']} fallbacks to the host"
    )


def launch(kind: str, label: str, verb: str, *words: object) -> None:
    """Runs a launcher and passes its lines on with a label. CalledProcessError when it fails."""
    flags = ["--cpu"] if kind == "gpu" else []
    command = [sys.executable, f"launch_{kind}.py", *flags, verb, *map(str, words)]
    environment = {"PJRT_DEVICE": "CPU", "OMP_NUM_THREADS": "1"} | os.environ
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        with _print_lock:
            print(f"{label:>9} | {line.rstrip()}", flush=True)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command[1:4])


def read_results(run: Path) -> dict[str, Any]:
    """results/*.json of a run folder by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}


def table(results: dict[str, dict[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """One row a model: accuracy in percent with its 95 % Wilson interval, for each column."""
    lines = ["", f"{'model':<10}" + "".join(f"{column:>26}" for column in columns)]
    for name in sorted(results):
        cells = []
        for column in columns:
            entry = results[name][column]
            low, high = (100 * bound for bound in entry["interval"])
            cells.append(f"{100 * entry['top1']:6.1f} % [{low:5.1f}, {high:5.1f}]")
        lines.append(f"{name:<10}" + "".join(f"{cell:>26}" for cell in cells))
    num_images = next(iter(results.values()))[columns[0]]["num_images"]
    return "\n".join([*lines, f"{num_images} held-out scans; pgd at eps 16/255; 95 % Wilson intervals", ""])


def say(text: str) -> None:
    with _print_lock:
        print(f"quickstart | {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
