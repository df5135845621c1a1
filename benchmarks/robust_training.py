"""Clean and adversarial twins of the quickstart's models over several seeds.

    python benchmarks/robust_training.py [--seeds 3] [--output runs/robust_training]

Needs the shards that `make quickstart` makes. Shows clean and PGD-20 accuracy on the 359 held-out scans.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result
from bits.processor import has_bf16
from engine.children import Children
from engine.quickstart import PARALLEL, RECIPES

COLUMNS = ("clean", "pgd20_linf8", "pgd20_linf16")  # names of results


def train(children: Children, name: str, seed: int, output: Path, precision: str) -> dict[str, Any]:
    folder = output / f"{name}-seed{seed}"
    recipe = f"recipes/quickstart/{name}.yaml"
    words = (f"run.precision={precision}", f"run.seed={seed}", "--output", folder)
    children.launch("gpu", f"{name}:{seed}", "train", recipe, *words)
    return {column: _top1(ROOT / folder / f"results/{column}.json") for column in COLUMNS}


def _top1(path: Path) -> float:
    found: dict[str, Any] = json.loads(path.read_text())
    return float(found["top1"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/robust_training"))
    arguments = parser.parse_args()
    precision = "bf16" if has_bf16() else "float32"
    jobs = [(name, seed) for name in RECIPES for seed in range(arguments.seeds)]
    with Children() as children, ThreadPoolExecutor(PARALLEL) as pool:
        found = list(pool.map(lambda job: train(children, *job, arguments.output, precision), jobs))
    results = {f"{name}-seed{seed}": row for (name, seed), row in zip(jobs, found, strict=True)}
    cells = []
    for name in sorted(RECIPES):
        rows = [results[f"{name}-seed{seed}"] for seed in range(arguments.seeds)]
        each = [" / ".join(f"{100 * row[c]:.1f}" for row in rows) for c in COLUMNS]
        means = [f"{100 * statistics.mean(row[c] for row in rows):.1f}" for c in COLUMNS]
        cells.append([name, *(f"{mean} ({parts})" for mean, parts in zip(means, each, strict=True))])
    text = [
        f"scikit-learn's digits at 32 px, 359 held-out scans, {precision}, eps 16/255 (linf, pixels in [0, 1]).",
        f"Mean over {arguments.seeds} seeds in percent, each seed in brackets. Robust: right before and after",
        "the attack.",
        "",
        *markdown_table(["recipe", *COLUMNS], cells),
    ]
    path = write_result(
        "robust-training", title="Clean and adversarial twins", text=text, data={"results": results}
    )
    print(path.read_text())


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{json.dumps([str(word) for word in error.cmd])} ended with code {error.returncode}")
