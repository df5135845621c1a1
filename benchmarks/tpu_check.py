"""What the TPU compiler says of five train steps on two chips: memory, operations, bytes, collectives, compile time.

    python benchmarks/tpu_check.py [--answers runs/tpu-check] [--topology v5e:2x4,v4:2x2x1] [--read-only]

One row after another, by `tpu-check`; rows that are there already are taken as they are, and the result is written
anew behind each one, so it can be stopped and called again. --read-only compiles nothing: it reads the answers that
`tpu-check --output` has left in the folder. No TPU is needed, and none is asked.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table, write_result
from engine.passes import passes_of
from engine.recipe import load_recipe
from engine.tpu.chips import GIB
from engine.tpu.facts import RATIO_GOAL, Facts, read
from engine.tpu.table import Pending, Row, markdown

BATCH = 64
TOPOLOGIES = "v5e:2x4,v4:2x2x1"


class Case(NamedTuple):
    """A row of the result."""

    name: str
    recipe: str
    words: tuple[str, ...] = ()


CASES = (
    Case("DeiT-S clean", "bai2021/deit_small"),
    Case("DeiT-S PGD-1", "bai2021/adv_deit_small"),
    Case("ResNet-50 GELU PGD-1", "bai2021/adv_res50_gelu"),
    # Its own groups are of 128 images.
    Case(
        "Robust-ResNet-DW clean",
        "wang2023/robust_resnet_dw_small",
        ("model.norm_stats=ghost:64", "run.precision=bf16"),
    ),
    Case("ConvNeXt-T PGD-1", "xu2022/convnext_tiny"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="tpu-check for the rows of the benchmark.")
    parser.add_argument("--answers", type=Path, default=ROOT / "runs/tpu-check", help="folder of answers")
    parser.add_argument("--topology", default=TOPOLOGIES, metavar="CHIP:SHAPE[,...]")
    parser.add_argument("--timeout", type=float, default=6000.0, metavar="S", help="of one compilation")
    parser.add_argument("--read-only", action="store_true", help="compile nothing")
    arguments = parser.parse_args()
    wanted = [(case, topology) for topology in arguments.topology.split(",") for case in CASES]
    failed = 0
    for case, topology in [] if arguments.read_only else wanted:
        if find_answer(arguments.answers, case, topology) is None:
            failed += compile_row(case, topology, arguments)
            write([row_of(arguments.answers, *each) for each in wanted])
    print(write([row_of(arguments.answers, *each) for each in wanted]).read_text())
    return 1 if failed else 0


def compile_row(case: Case, topology: str, arguments: argparse.Namespace) -> bool:
    """Whether nothing came of it. A step that does not compile is an answer too."""
    command = [sys.executable, "launch_xla.py", "tpu-check", f"recipes/{case.recipe}.yaml", *case.words]
    command += ["--topology", topology, "--batch-per-device", str(BATCH)]
    command += ["--timeout", str(arguments.timeout), "--output", str(arguments.answers)]
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, cwd=ROOT, check=False)
    return find_answer(arguments.answers, case, topology) is None


def find_answer(folder: Path, case: Case, topology: str) -> dict[str, Any] | None:
    """The answer of a row in `folder`, whichever code it was compiled from."""
    for path in sorted(folder.glob("*.json")):
        try:
            answer: dict[str, Any] = json.loads(path.read_text())
        except ValueError:  # half written
            continue
        is_row = (answer.get("recipe"), answer.get("topology")) == (f"recipes/{case.recipe}.yaml", topology)
        same_words = set(case.words) <= set(answer.get("words") or ())
        if is_row and same_words and answer.get("batch_per_device") == BATCH:
            return answer
    return None


def row_of(folder: Path, case: Case, topology: str) -> Row:
    answer = find_answer(folder, case, topology)
    if answer is None:
        return Pending(case.name, topology, BATCH)
    recipe = load_recipe(ROOT / f"recipes/{case.recipe}.yaml", case.words)
    passes = passes_of(recipe.objective, recompute=recipe.model.recompute)
    return read(answer, recipe=recipe, passes=passes, name=case.name)


def write(rows: list[Row]) -> Path:
    done = [row for row in rows if isinstance(row, Facts)]
    text = [
        f"{len(done)} of {len(rows)} rows, figures of one device and one step of {BATCH} images. "
        f"Operations over those of the model: goal at most {RATIO_GOAL}.",
        "",
        *markdown(rows),
        "",
        "## Operations",
        "",
        "GFLOP of one image by kind of pass, from the model alone, and the compiled step's matrix products and "
        "convolutions over the model's (padding of kernels left out in both).",
        "",
        *markdown_table(["row", "topology", "passes", "products over the model's"], [_work(f) for f in done]),
        "",
        "## Inside the programs",
        "",
        *markdown_table(
            [
                "row",
                "topology",
                "collectives",
                "gradients",
                "Mcycles*",
                "padding",
                "copies",
                "donated",
                "host fallbacks",
            ],
            [_inside(f) for f in done],
        ),
        "",
        "## Where the bytes go",
        "",
        "Arrays by dtype and size, wherever they are operands or results: times a step and GB, in any memory.",
        "",
        *markdown_table(["row", "topology", "most moved"], [_moved(f) for f in done]),
    ]
    data = {"batch_per_device": BATCH, "rows": [_figures(row) for row in rows]}
    return write_result("tpu-check", title="Train steps before the TPU compiler", text=text, data=data)


def _work(facts: Facts) -> list[object]:
    parts = [f"{p.passes} {p.name} of {p.each.total / 1e9:.2f}" for p in facts.step_flops.components]
    ratio = "-" if facts.matrix_ratio is None else f"{facts.matrix_ratio:.4f}"
    return [facts.name, facts.topology, ", ".join(parts), ratio]


def _inside(facts: Facts) -> list[object]:
    padding = "-" if facts.padding is None else f"{facts.padding:.0%}"
    copies = "-" if facts.counts is None else facts.counts.ops.get("copy", 0)
    fallbacks = ", ".join(f"{op} {n}" for op, n in facts.fallbacks.items()) or "none"
    donated = f"{facts.donated} of {facts.state_tensors}"
    named = [facts.collectives or "-", facts.gradient_dtype or "-"]
    cycles = "-" if facts.counts is None else f"{facts.counts.cycles / 1e6:.1f}"
    return [facts.name, facts.topology, *named, cycles, padding, copies, donated, fallbacks]


def _moved(facts: Facts) -> list[object]:
    found = [] if facts.counts is None else facts.counts.most_moved
    words = ", ".join(f"{m.shape} {m.times} times {m.bytes / 1e9:.1f}" for m in found) or "-"
    return [facts.name, facts.topology, words]


def _figures(row: Row) -> dict[str, Any]:
    if isinstance(row, Pending):
        return {"name": row.name, "topology": row.topology, "verdict": None, "reason": row.reason}
    counts = row.counts
    return {
        "name": row.name,
        "topology": row.topology,
        "precision": row.precision,
        "verdict": row.verdict,
        "reason": row.reason,
        "hbm_gib": None if row.memory is None else row.memory.total / GIB,
        "suggested_batch": row.suggested_batch,
        "flops": row.flops,
        "model_flops": row.model_flops,
        "flops_ratio": row.flops_ratio,
        "matrix_ratio": row.matrix_ratio,
        "bytes": row.bytes,
        "hbm_bytes": None if counts is None else counts.hbm_bytes,
        "estimate_s": None if row.roofline is None else [row.roofline.low_s, row.roofline.high_s],
        "collectives": None if counts is None else [each._asdict() for each in counts.collectives],
        "products": None if counts is None else dict(counts.products),
        "instructions": None if counts is None else dict(counts.ops),
        "estimated_cycles": None if counts is None else counts.cycles,
        "most_moved": None if counts is None else [each._asdict() for each in counts.most_moved],
        "padding": row.padding,
        "donated": row.donated,
        "state_tensors": row.state_tensors,
        "fallbacks": dict(row.fallbacks),
        "compile_s": row.compile_s,
        "compile_cpu_s": row.compile_cpu_s,
        "host_peak_bytes": row.host_peak_bytes,
    }


if __name__ == "__main__":
    sys.exit(main())
