"""What PGD-k costs to compile on XLA: graphs cut between attack steps, as the toolkit has it, against one graph.

    OMP_NUM_THREADS=1 PJRT_DEVICE=CPU python benchmarks/xla_compile.py [--steps 1 5 10 50] [--repeats 3]

Every cell is a process of its own, so that nothing is compiled already: a whole train step (AdamW, float32, batch 8,
32 px), called until nothing compiles any more, then `--repeats` calls whose median is the step. CPU-seconds are of the
whole process: compile = what the calls that compiled took beyond the median. A node is an operation of torch_xla's
lazy graph as it was lowered. Arms: `cut` ends the graph after every attack step; `chunk 5` after every fifth;
`unrolled` never, so that the attack and the update are one graph.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.record import RESULTS, markdown_table, write_result

BATCH, SIZE = 8, 32
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}},
    "vit": {"name": "small_vit"},
}
ARMS = ("cut", "chunk 5", "unrolled")
# What a loop inside the graph did on 2026-11-20; tried by hand, once, and not part of the toolkit.
LOOPS = (
    "Loops inside the graph (torch_xla 2.9.0, small_vit, 32 px, batch 8, the attack alone, same flags, one run each).",
    "The public `torch_xla.experimental.scan` differentiates its body always (read in its source), and PGD's new image",
    "has no gradient. The part below that (`_scan_impl_pytree`, private) ran with image, clean image, target, radius",
    "and step size as its carry and found the weights by itself: one graph, no fallback, images bit-equal to the cut",
    "attack's for k = 5 and 20. First call, result read: 3.5, 10.3 and 23.0 CPU-s for k = 5, 20 and 50; cut 1.6 for",
    "k = 5. Later calls, result not read: 0.13 CPU-s for k = 50; cut 0.16 for k = 5 and 0.8 for k = 20. What grows by",
    "0.4 CPU-s with each step, compiling or running, was not told apart. k is a constant of its graph, so a warm-up of",
    "steps would compile one for each; several devices were not tried. Not taken.",
)


def every(count: int, cut: Callable[[], None]) -> Callable[[], None]:
    """A cut that ends the graph at its first call, which is after the start, and then at every `count`-th."""
    calls = 0

    def sometimes() -> None:
        nonlocal calls
        if calls % count == 0:
            cut()
        calls += 1

    return sometimes


def use_arm(arm: str) -> None:
    """From now on training attacks are cut as `arm` says."""
    import engine.training_attack as training_attack
    from robust.pgd import PGD, no_cut

    build = training_attack.build_pgd

    def other(env: Any, **settings: Any) -> PGD:
        made = build(env, **settings)
        return replace(made, cut=no_cut if arm == "unrolled" else every(5, env.cut))

    if arm != "cut":
        training_attack.build_pgd = other


def cell(model: str, arm: str, steps: int, repeats: int) -> dict[str, Any]:
    """One process's measurement."""
    from benchmarks.pgd_step import random_batch
    from bits.environment import open_environment
    from data.batch import Batch
    from engine.knobs import feed_knobs, pack_knobs

    use_arm(arm)
    env = open_environment("xla")
    step = make_step(env, model, steps)
    batch = random_batch(SIZE, BATCH)

    nodes = count_nodes(env)

    def seconds(number: int) -> float:
        knobs = pack_knobs(lr=1e-4, eps=4 / 255, step_size=1 / 255, step=number)
        start = time.process_time()
        step(Batch(**env.feed(batch._asdict())), feed_knobs(env, knobs))
        env.barrier()
        return time.process_time() - start

    env.barrier()
    nodes.clear()
    first = [seconds(number) for number in range(3)]
    compiled = dict(nodes)
    late = [seconds(3 + number) for number in range(repeats)]
    assert nodes == compiled, "a graph was compiled after the third step"
    median = statistics.median(late)
    return {
        "model": model,
        "arm": arm,
        "steps": steps,
        "graphs": len(compiled),
        "nodes": sum(compiled.values()),
        "compile_cpu_s": sum(first) - 3 * median,
        "step_cpu_s": median,
    }


def count_nodes(env: Any) -> dict[int, int]:
    """From now on filled by `env.cut`: the number of a compile -> the nodes of its graph."""
    import torch_xla.debug.metrics as metrics

    cut, found = env.cut, dict[int, int]()

    def counting() -> None:
        before = env.counters()["compiles"]
        cut()
        if (after := env.counters()["compiles"]) > before:
            found[after] = int(metrics.metric_data("TensorsGraphSize")[2][-1][1])

    env.cut = counting
    return found


def make_step(env: Any, model: str, steps: int) -> Any:
    """A train step with PGD of so many steps."""
    from bits.meters import Meters
    from engine.build import batch_layout, build_state
    from engine.guard import Guard
    from engine.recipe import parse_recipe
    from engine.step import TrainStep, meter_names, step_settings

    attack = {"norm": "linf", "eps": "4/255", "step_size": "1/255", "steps": steps}
    recipe = parse_recipe(
        {
            "data": {"train": "unused", "image_size": SIZE},
            "model": MODELS[model],
            "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
            "objective": {"kind": "adversarial", "attack": attack},
            "run": {"epochs": 1, "batch_size": BATCH},
        }
    )
    state = build_state(recipe, env, num_classes=10, layout=batch_layout(BATCH, env))
    state.model.train()
    settings = step_settings(recipe, 10)
    return TrainStep(
        env=env,
        state=state,
        forward=env.wrap(state.model),
        settings=settings,
        meters=Meters(meter_names(settings), env.device),
        guard=Guard(state.model, limit=10, device=env.device),
    )


def run_cell(model: str, arm: str, steps: int, repeats: int) -> dict[str, Any]:
    """A cell in a process of its own; it speaks on its last line."""
    words = [sys.executable, __file__, "--cell", model, arm, str(steps), "--repeats", str(repeats)]
    environment = {**os.environ, "PJRT_DEVICE": "CPU"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{model} {arm} {steps}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 10, 50])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        model, arm, steps = arguments.cell
        print(json.dumps(cell(model, arm, int(steps), arguments.repeats)))
        return
    cells = [
        (model, arm, steps)
        for model in MODELS
        for steps in arguments.steps
        for arm in ARMS
        # one step is one graph whatever the arm, and chunks are for many steps
        if (steps > 1 or arm == "cut") and (steps >= 50 or arm != "chunk 5")
    ]
    rows = measured()
    known = {(row["model"], row["arm"], row["steps"]) for row in rows}
    # The long ones last: a table cut short is a table.
    for model, arm, steps in sorted(set(cells) - known, key=lambda c: (c[2], c[0], c[1])):
        rows.append(run_cell(model, arm, steps, arguments.repeats))
        rows.sort(key=lambda row: (row["model"], row["steps"], row["arm"]))
        text, title = report(rows), "PGD-k on XLA: graphs and compile time"
        print(write_result("xla-compile", title=title, text=text, data={"rows": rows}).read_text())


def measured() -> list[dict[str, Any]]:
    """The cells that today's result holds already: a measurement that was stopped goes on."""
    path = RESULTS / f"{datetime.date.today().isoformat()}-xla-compile.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The text below the title."""
    header = ["model", "k", "arm", "graphs compiled", "their nodes", "compile CPU-s", "step CPU-s"]
    cells = [
        [
            *(r["model"], r["steps"], r["arm"], r["graphs"], r["nodes"]),
            *(f"{r['compile_cpu_s']:.1f}", f"{r['step_cpu_s']:.3f}"),
        ]
        for r in rows
    ]
    return [
        f"XLA_FLAGS: `{os.environ.get('XLA_FLAGS', '')}`.",
        "A whole train step with PGD-k. `cut` is what training does: one graph for the start, one for an attack step",
        "and one for the update, whatever k is; with k = 1 start, step and update are one graph. Cells that are",
        "missing were not measured.",
        "",
        *markdown_table(header, cells),
        "",
        *LOOPS,
    ]


if __name__ == "__main__":
    main()
