"""AutoAttack `standard` on XLA:CPU: what compiles, what is read back, and what a step costs beside the eager one.

    OMP_NUM_THREADS=1 python benchmarks/attack_xla.py [--num-images 16] [--queries 5000] [--repeats 7]

Two processes, one for each backend, hold the same model; both are kept to one core, and CPU-seconds are those of the
whole process. First chunks of steps in turn (eager, XLA), then two blocks of images on each: in the second one nothing
may compile. Verdicts of the two backends are compared image by image.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from benchmarks.attack_models import MODELS, held_out, model_of
from benchmarks.record import markdown_table, write_result
from benchmarks.xla_step import Arm
from bits.environment import Environment, open_environment
from robust.block import BlockAttack
from robust.lanes import Lanes
from robust.stage import Device
from robust.versions import Part, version_of

ARMS: Final = ("cpu", "xla")
GOAL: Final = 1.3
CHUNK: Final = 10
WARM_UP: Final = 2  # chunks; the first step compiles, and may do so once more
STEP_LANES: Final = 64  # where steps are measured: those of a real run
LANES: Final = 8  # of whole runs
SAME_VERDICTS: Final = 0.999


def parts(queries: int) -> list[Part]:
    """Of `standard`; fewer queries only to try the benchmark."""
    found = version_of("standard", norm="linf", num_classes=10).parts
    return [
        replace(part, component=replace(part.component, queries=queries))  # type: ignore[type-var]
        if part.name == "square"
        else part
        for part in found
    ]


class Worker:
    """Answers lines of JSON: what to do, and with what."""

    def __init__(self, backend: str) -> None:
        self.env: Environment = open_environment(backend)  # type: ignore[arg-type]
        self.entries = {entry.name: entry for entry in MODELS}
        self.state: Any = None
        self.step: Any = None

    def model(self, name: str) -> nn.Module:
        return self.env.place(model_of(self.entries[name]))

    def feed(self, tensor: Tensor) -> Tensor:
        return self.env.feed({"tensor": tensor})["tensor"]

    def prepare(self, model: str, number: int, queries: int) -> dict[str, Any]:
        """A component on a full batch of lanes, at a radius at which nothing breaks."""
        component = parts(queries)[number].component
        self.step = self.env.repeated(partial(component.step, self.model(model)))
        image, label = held_out(STEP_LANES)
        eps, seed = torch.full((STEP_LANES,), 1e-7), torch.arange(STEP_LANES)
        lanes = Lanes(image, label, (label + 1) % 10, eps, seed)
        self.state = component.init(Lanes(*(self.feed(tensor) for tensor in lanes)))
        self.env.cut()
        return {}

    def chunk(self) -> dict[str, Any]:
        """Read at its end, as a stage does: before that nobody knows whether the device is done."""
        for _ in range(CHUNK):
            self.state = self.step(self.state)
            self.env.cut()
        self.state.step.cpu()
        return {}

    def block(self, model: str, first: int, num: int, queries: int) -> dict[str, Any]:
        """`standard` on images first .. first + num; chunks are counted, each is read once."""
        entry, predict = self.entries[model], self.model(model)
        image, label = (part[first:] for part in held_out(first + num))
        chunks: list[object] = []
        attack = BlockAttack(
            predict=predict,
            verdict=predict,
            image=self.feed(image),
            label=self.feed(label),
            eps=self.feed(torch.full((1,), entry.eps))[0],
            keys=range(first, first + num),
            parts=parts(queries),
            seed=0,
            num_lanes=LANES,
            chunk=CHUNK,
            device=Device(
                feed=self.feed,
                cut=self.env.cut,
                repeated=self.env.repeated,
                compiles=self.env.compiles,
            ),
            on_chunk=chunks.append,
        )
        num_outcomes = sum(1 for _ in attack.run())
        self.env.barrier()
        return {"broken_by": attack.broken_by, "chunks": len(chunks), "outcomes": num_outcomes}

    def serve(self) -> None:
        for line in sys.stdin:
            what, *words = json.loads(line)
            before, cpu = self.env.counters(), time.process_time()
            answer = getattr(self, what)(*words)
            answer["cpu_s"] = time.process_time() - cpu
            after = self.env.counters()
            answer |= {name: after[name] - before.get(name, 0) for name in after}
            print(f"> {json.dumps(answer)}", flush=True)


class OtherArm(Arm):
    """A worker of this file."""

    script = Path(__file__)


def measure(model: str, *, num_images: int, queries: int, repeats: int) -> dict[str, Any]:
    arms = {backend: OtherArm(backend) for backend in ARMS}
    try:
        steps = [_step(arms, model, number, queries, repeats) for number in range(len(parts(queries)))]
        blocks = {
            backend: [
                arm.ask(json.dumps(["block", model, first, num_images, queries])) for first in (0, num_images)
            ]
            for backend, arm in arms.items()
        }
    finally:
        for arm in arms.values():
            arm.close()
    pairs = [
        (mine, other)
        for eager, lazy in zip(blocks["cpu"], blocks["xla"], strict=True)
        for mine, other in zip(eager["broken_by"], lazy["broken_by"], strict=True)
    ]
    equal = sum((mine is None) == (other is None) for mine, other in pairs) / len(pairs)
    return {"model": model, "queries": queries, "steps": steps, "blocks": blocks, "equal_verdicts": equal}


def _step(arms: dict[str, OtherArm], model: str, number: int, queries: int, repeats: int) -> dict[str, Any]:
    for arm in arms.values():
        arm.ask(json.dumps(["prepare", model, number, queries]))
    warm = {backend: [arm.ask('["chunk"]') for _ in range(WARM_UP)] for backend, arm in arms.items()}
    pairs = [{backend: arm.ask('["chunk"]') for backend, arm in arms.items()} for _ in range(repeats)]
    ratios = [pair["xla"]["cpu_s"] / pair["cpu"]["cpu_s"] for pair in pairs]
    return {
        "component": parts(queries)[number].name,
        "graphs": sum(chunk["compiles"] for chunk in warm["xla"]),
        "later_compiles": sum(pair["xla"]["compiles"] for pair in pairs),
        "fallbacks": sum(pair["xla"]["fallbacks"] for pair in pairs),
        "host_reads": sum(pair["xla"]["host_reads"] - 1 for pair in pairs),
        **{f"{b}_cpu_s": statistics.median(pair[b]["cpu_s"] for pair in pairs) / CHUNK for b in ARMS},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def report(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the Markdown result."""
    header = [
        "model",
        "component",
        "graphs",
        "later",
        "fallbacks",
        "reads",
        "eager CPU-s",
        "XLA CPU-s",
        "ratio",
    ]
    cells = [
        [
            row["model"],
            *(s[key] for key in ("component", "graphs", "later_compiles", "fallbacks", "host_reads")),
            *(f"{s[f'{backend}_cpu_s']:.4f}" for backend in ARMS),
            f"{s['ratio']:.2f} ({s['ratio_min']:.2f} to {s['ratio_max']:.2f})",
        ]
        for row in rows
        for s in row["steps"]
    ]
    blocks = [
        [
            row["model"],
            number + 1,
            *(b[key] for key in ("compiles", "fallbacks", "chunks", "host_reads")),
            *(f"{row['blocks'][backend][number]['cpu_s']:.0f}" for backend in ARMS),
            f"{100 * row['equal_verdicts']:.1f} %",
        ]
        for row in rows
        for number, b in enumerate(row["blocks"]["xla"])
    ]
    columns = [
        "model",
        "block",
        "compiles",
        "fallbacks",
        "chunks",
        "reads",
        "eager CPU-s",
        "XLA CPU-s",
        "equal",
    ]
    return [
        f"{STEP_LANES} lanes, chunks of {CHUNK} steps, {rows[0]['queries']} queries, one core for both. Steps in turn; "
        f"reads, fallbacks and later compiles are those inside the measured chunks, but for the one read at the end of "
        f"each. Goals: 0 of each, ratio <= {GOAL}.",
        "",
        *markdown_table(header, cells),
        "",
        f"Whole runs with {LANES} lanes; block 2 must compile nothing. A chunk is read once, and so is each batch of "
        f"verdicts. Goal: {100 * SAME_VERDICTS:g} % of the verdicts equal.",
        "",
        *markdown_table(columns, blocks),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="cnn-robust-0,vit-robust-0")
    parser.add_argument("--num-images", type=int, default=16, help="in a block")
    parser.add_argument("--queries", type=int, default=5000, help="fewer only to try it")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--serve", choices=ARMS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if arguments.serve:
        return Worker(arguments.serve).serve()
    rows = []
    for name in arguments.models.split(","):
        model_of({entry.name: entry for entry in MODELS}[name])  # trained once, before both arms want it
        settings = {"queries": arguments.queries, "repeats": arguments.repeats}
        rows.append(measure(name, num_images=arguments.num_images, **settings))
        text, title = report(rows), "AutoAttack on XLA:CPU beside eager cpu"
        print(write_result("attack-xla", title=title, text=text, data={"rows": rows}).read_text(), flush=True)


if __name__ == "__main__":
    main()
