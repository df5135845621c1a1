"""How long a person waits for the small verbs: cold processes, wall and CPU seconds.

    python benchmarks/command_line.py [--repeats 5]

The report needs the runs that `make quickstart` leaves. The verbs take turns (A B C A B C), so that a busy moment
of the machine falls on all of them.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result

RUNS = [f"runs/quickstart/{name}" for name in ("cnn_clean", "cnn_adv", "vit_clean", "vit_adv")]
GOALS_S = {"--help": 0.5, "list models": 2.0, "list recipes": 2.0, "list suites": 2.0, "list attacks": 2.0}


def commands(folder: Path) -> dict[str, list[str]]:
    """Words behind the launcher, by name."""
    return {
        "--help": ["--help"],
        **{f"list {what}": ["list", what] for what in ("models", "recipes", "suites", "attacks")},
        "doctor --no-self-test": ["doctor", "--no-self-test"],
        "doctor": ["doctor"],
        "report of 4 runs": ["report", *RUNS, "--output", str(folder / "report.html")],
    }


def measure(words: list[str]) -> tuple[float, float]:
    """(wall, CPU) seconds of one cold process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "launch_gpu.py", "--cpu", *words]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        verbs = commands(Path(folder))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in verbs}
        for _ in range(repeats):
            for name, words in verbs.items():
                found[name].append(measure(words))
    results = {
        name: {"wall_s": [w for w, _ in pairs], "cpu_s": [c for _, c in pairs]}
        for name, pairs in found.items()
    }
    rows = []
    for name, values in results.items():
        wall, cpu = (statistics.median(values[kind]) for kind in ("wall_s", "cpu_s"))
        goal = f"< {GOALS_S[name]:g}" if name in GOALS_S else "-"
        rows.append([name, f"{wall:.2f} ({max(values['wall_s']):.2f})", f"{cpu:.2f}", goal])
    text = [
        f"`launch_gpu.py --cpu ...`, cold processes, median of {repeats} (slowest in brackets), the verbs in turns.",
        "",
        *markdown_table(["verb", "wall s", "CPU s", "goal, wall s"], rows),
    ]
    path = write_result(
        "command-line", title="Waiting for the small verbs", text=text, data={"results": results}
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
