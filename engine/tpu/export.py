"""The train step of a recipe, exported: a program of one process, started by job.py with virtual CPU devices.

    python -m engine.tpu.export '{"recipe": ..., "words": [...], "num_devices": 8, "folder": ...}'

With "counts": true it runs a small step with values instead, and writes what was left to the host.

State and step are built by the functions that training uses. No weights are read: values change no graph. The first
update is traced to make the optimizer's slots and forgotten; of the second one the last micro-batch is recorded, the
one that ends the update.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.failure import guarded
from engine.launch import hush

EXIT_FALLBACKS = 4


def main(argv: list[str]) -> int:
    """0, or 2 and one line."""
    hush()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return guarded(lambda: export(json.loads(argv[0])))


def export(order: dict[str, Any]) -> int:
    """Writes graph-K.stablehlo and export.json into the folder of `order`; with "counts" fallbacks.json alone."""
    # Imported here, and not before the environment is as torch_xla wants it.
    from bits.xla_export import fallbacks, open_export
    from engine.recipe import load_recipe
    from engine.tpu.traced import Traced, run_small

    begun, folder = time.perf_counter(), Path(order["folder"])
    recipe = load_recipe(order["recipe"], order["words"])
    if order.get("counts"):
        run_small(recipe)
        (folder / "fallbacks.json").write_text(json.dumps(fallbacks()))
        return 0
    run = recipe.run
    env = open_export(
        precision=run.precision, num_devices=order["num_devices"], reduce_dtype=run.reduce_dtype
    )
    traced = Traced(env, recipe)
    counts = Counter(traced.record())
    if fallbacks():
        return EXIT_FALLBACKS
    facts = [
        {"file": _write(folder / f"graph-{number}.stablehlo", graph.stablehlo), "count": count}
        | {"donated": graph.donated, "divided": graph.divided, "state_tensors": graph.num_changed}
        for number, (graph, count) in enumerate(counts.items())
    ]
    result = {
        "graphs": facts,
        "sha256": hashlib.sha256(b"".join(graph.stablehlo for graph in counts)).hexdigest(),
        "fallbacks": {},
        "precision": recipe.run.precision,
        "accumulate": recipe.optim.accumulate,
        "teacher": traced.teacher_name,
        "export_s": time.perf_counter() - begun,
        "versions": {name: version(name) for name in ("torch", "torch_xla", "timm")},
    }
    (folder / "export.json").write_text(json.dumps(result))
    return 0


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return path.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
