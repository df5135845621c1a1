"""What a step of each component costs beside the model's passes that are in it.

    OMP_NUM_THREADS=1 python benchmarks/attack_cost.py [--model resnet18 --image-size 224] [--lanes 8] [--repeats 7]

A step and its pure passes (as many forward passes, and forward with backward to the image) run in turn on the same
batch; the rest is the attack's own arithmetic. With torchattacks at hand also a step of its components at that batch.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.attack_arm import MISSING, PEERS, analytic, has_torchattacks, peer
from benchmarks.record import markdown_table, write_result
from models.registry import create_model
from robust.gradient import input_gradient
from robust.lanes import Lanes
from robust.versions import Part, version_of

GOAL: Final = 0.15
GOAL_CPU: Final = 0.95  # of theirs at 224 px
EPS: Final = 1e-7  # nothing is broken, so that every step is a full one
PEER_OF: Final = {"apgd-ce": "APGD", "apgd-t": "APGDT", "fab-t": "FAB", "square": "Square"}


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def pure_passes(part: Part, model: nn.Module, image: Tensor) -> Callable[[], None]:
    """As many passes as a step makes, and nothing else."""
    passes = part.component.passes

    def work() -> None:
        for _ in range(round(passes.backward)):
            input_gradient(model, image, lambda logits: logits[:, 0].sum())
        with torch.no_grad():
            for _ in range(round(passes.forward - passes.backward)):
                model(image)

    return work


def measure(part: Part, model: nn.Module, lanes: Lanes, *, repeats: int, steps: int) -> dict[str, Any]:
    """Medians over pairs of (`steps` steps, the passes in them)."""
    component = part.component
    state = component.init(lanes)
    state = component.step(model, state)
    pure = pure_passes(part, model, lanes.clean)
    pure()
    pairs = []
    for _ in range(repeats):

        def work() -> None:
            nonlocal state
            for _ in range(steps):
                state = component.step(model, state)

        pairs.append((cpu_seconds(work) / steps, cpu_seconds(lambda: [pure() for _ in range(steps)]) / steps))
    assert not bool(state.found.any()), "a lane was broken; its steps cost the same, but say so"
    overhead = [step / alone - 1.0 for step, alone in pairs]
    return {
        "component": part.name,
        "step_cpu_s": statistics.median(step for step, _ in pairs),
        "passes_cpu_s": statistics.median(alone for _, alone in pairs),
        "overhead": statistics.median(overhead),
        "overhead_min": min(overhead),
        "overhead_max": max(overhead),
        "steps_per_survivor": max(part.targets, part.restarts) * component.steps,
    }


def peers(model: nn.Module, lanes: Lanes, *, short: int, long: int) -> dict[str, float]:
    """CPU-seconds of a step of torchattacks' components: the difference of two lengths, so that set-up drops out.

    APGDT and FAB count one target class here.
    """
    found = {}
    for name in PEERS:
        times = []
        for steps in (short, long):
            attack = peer(name, model, eps=EPS, norm="linf", seed=0)
            attack.n_target_classes = 1
            setattr(attack, "n_queries" if name == "Square" else "steps", steps)
            times.append(cpu_seconds(lambda attack=attack: attack(lanes.clean, lanes.label)))  # type: ignore[misc]
        found[name] = (times[1] - times[0]) / (long - short)
    return found


def report(rows: Sequence[dict[str, Any]], *, setting: str, units: float) -> list[str]:
    """Lines of the Markdown result."""
    header = [
        "component",
        "step CPU-s",
        "passes CPU-s",
        "overhead",
        "min",
        "max",
        "steps",
        "torchattacks' step",
    ]
    cells = [
        [
            row["component"],
            f"{row['step_cpu_s']:.4f}",
            f"{row['passes_cpu_s']:.4f}",
            *(f"{100 * row[key]:+.1f} %" for key in ("overhead", "overhead_min", "overhead_max")),
            row["steps_per_survivor"],
            f"{row['peer_cpu_s']:.4f}" if row.get("peer_cpu_s") else "",
        ]
        for row in rows
    ]
    mine = sum(row["step_cpu_s"] * row["steps_per_survivor"] for row in rows)
    pure = sum(row["passes_cpu_s"] * row["steps_per_survivor"] for row in rows)
    lines = [
        f"{setting}. A survivor goes through {units:,.0f} units (a backward pass to the image counts two).",
        "",
        *markdown_table(header, cells),
        "",
        f"A batch of survivors, all steps: {mine:.0f} CPU-s, of them {pure:.0f} in the model: overhead "
        f"{100 * (mine / pure - 1):.1f} % (goal {100 * GOAL:.0f} %).",
    ]
    lines.append(
        f"By these costs, on full lanes: `fast` {_share('fast', rows):.2f} of `standard`, its searches in float32; "
        f"`next` {_share('next', rows):.2f}, without the choice of its targets."
    )
    if all(row.get("peer_cpu_s") for row in rows):
        other = sum(row["peer_cpu_s"] * row["steps_per_survivor"] for row in rows)
        lines.append(
            f"torchattacks' steps, as many: {other:.0f} CPU-s; ours are {mine / other:.2f} of it (goal at 224 px "
            f"{GOAL_CPU})."
        )
    return lines


def _share(version: str, rows: Sequence[dict[str, Any]]) -> float:
    """Of `standard`'s CPU-seconds of a survivor."""
    cost = {row["component"]: row["step_cpu_s"] for row in rows}
    cost["apgd-pm"] = cost["apgd-ce"]
    parts = version_of(version, norm="linf", num_classes=1000).parts
    ours = sum(
        part.share
        * max(part.targets, part.restarts)
        * part.component.steps
        * cost[part.name.removesuffix("-audit")]
        for part in parts
    )
    return float(ours / sum(row["step_cpu_s"] * row["steps_per_survivor"] for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="in one measurement")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    size, num = arguments.image_size, arguments.lanes
    statistic = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    model = create_model(arguments.model, num_classes=1000, image_size=size, **statistic)  # type: ignore[arg-type]
    model.eval().requires_grad_(False)
    image = torch.rand(num, 3, size, size)
    with torch.no_grad():
        order = model(image).argsort(dim=1, descending=True)
    lanes = Lanes(image, order[:, 0], order[:, 1], torch.full((num,), EPS), torch.arange(num))
    parts = version_of("standard", norm="linf", num_classes=1000).parts
    rows = [measure(part, model, lanes, repeats=arguments.repeats, steps=arguments.steps) for part in parts]
    if has_torchattacks():
        costs = peers(model, lanes, short=2, long=2 + 2 * arguments.repeats)
        for row in rows:
            row["peer_cpu_s"] = costs[PEER_OF[row["component"]]]
    else:
        print(f"note: {MISSING}", file=sys.stderr)
    setting = f"{arguments.model} at {size} px, {num} lanes, {arguments.repeats} pairs in turn"
    text = report(rows, setting=setting, units=analytic(parts).units)
    data = {"setting": setting, "rows": rows}
    print(
        write_result(
            "attack-cost", title="Attack steps beside their passes", text=text, data=data
        ).read_text()
    )


if __name__ == "__main__":
    main()
