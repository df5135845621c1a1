"""`fast` and `next` beside `standard`, on the same models and images: what each leaves, and what each costs.

    OMP_NUM_THREADS=1 python benchmarks/attack_versions.py [--num-images 200] [--models NAME,...]
        [--versions standard,next]

The versions run in turn on each model. `fast-bf16` is `fast` with its searches under autocast in bfloat16. What a
version misses is counted against the union of all of them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.attack_arm import Arm, ours, useful
from benchmarks.attack_models import MODELS, Entry, held_out, model_of
from benchmarks.record import markdown_table, write_result
from robust.bounds import Row, audit_of
from robust.low_precision import low_precision
from robust.union import best_known
from robust.versions import version_of

ARMS: Final = ("standard", "fast", "fast-bf16", "next")
GOAL_FAST: Final = 1 / 3


def arm_of(name: str, entry: Entry, model: nn.Module, image: Tensor, label: Tensor) -> dict[str, Any]:
    """What one version leaves and costs; a row with every image's verdict."""
    version = version_of(name.removesuffix("-bf16"), norm="linf", num_classes=10)
    is_low = name.endswith("-bf16")
    arm: Arm = ours(
        model,
        image,
        label,
        eps=entry.eps,
        norm="linf",
        parts=version.parts,
        search=(lambda p: low_precision(p, lambda: torch.autocast("cpu", torch.bfloat16)))
        if is_low
        else None,
    )
    spent, _ = useful(arm.outcomes, version.parts)
    rows = [Row(o.row, o.component, o.tries > 0, o.broken) for o in arm.outcomes]
    audit = audit_of(version, rows, num_images=len(image))
    return {
        "model": entry.name,
        "version": name,
        "eps": entry.eps,
        "num_images": len(image),
        "robust": "".join("1" if is_robust else "0" for is_robust in arm.robust.tolist()),
        "cpu_s": round(arm.cpu_s, 1),
        "useful_units": sum(passes.units for passes in spent.values()),
        "unconfirmed": sum(o.claimed and not o.broken for o in arm.outcomes),
        "audit": None if audit is None else {**audit._asdict(), "least_robust": audit.least_robust()},
    }


def report(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of the Markdown result."""
    arms = list(dict.fromkeys(row["version"] for row in rows))
    cells, totals = [], dict.fromkeys(arms, (0.0, 0.0))
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["version"]: row for row in rows if row["model"] == model}
        if own.keys() != set(arms):
            continue
        union = best_known({name: dict(enumerate_keys(row["robust"])) for name, row in own.items()})
        for name, row in own.items():
            cpu, units = (row[key] / own["standard"][key] for key in ("cpu_s", "useful_units"))
            left = row["robust"].count("1")
            totals[name] = (totals[name][0] + row["cpu_s"], totals[name][1] + row["useful_units"])
            cells.append(
                [
                    model,
                    name,
                    f"{100 * left / row['num_images']:.1f}",
                    left - union.num_robust,
                    f"{row['cpu_s']:.0f} ({cpu:.2f})",
                    f"{units:.2f}",
                    _audited(row["audit"]),
                ]
            )
    header = [
        "model",
        "version",
        "robust %",
        "missed",
        "CPU-s (of standard's)",
        "passes, of standard's",
        "audit",
    ]
    return [
        f"{rows[0]['num_images']} held-out digits, linf. `missed`: images that another version broke. Passes are those "
        "of questions that were asked, idle lanes left out, a backward one counted as two.",
        "",
        *markdown_table(header, cells),
        "",
        "All models: "
        + "; ".join(
            f"{name} {totals[name][0] / totals['standard'][0]:.2f} of standard's CPU-seconds and "
            f"{totals[name][1] / totals['standard'][1]:.2f} of its passes"
            for name in arms
            if name != "standard"
        )
        + f". Goal for `fast`: {GOAL_FAST:.2f}. With few survivors its audit fills a fraction of its lanes and costs "
        "CPU time for the empty ones.",
    ]


def enumerate_keys(verdicts: str) -> list[tuple[str, bool]]:
    return [(str(number), verdict == "1") for number, verdict in enumerate(verdicts)]


def _audited(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return ""
    least = 100 * audit["least_robust"]
    return f"{audit['broken']} of {audit['audited']} broken; at least {least:.1f} % robust"


def _some(arms: Sequence[str]) -> list[str]:
    """Named in the result where not all ran."""
    return [] if set(arms) == set(ARMS) else [name for name in arms if name != "standard"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--models", default="cnn-robust-0,vit-robust-0,cnn-clean-0,vit-clean-0")
    parser.add_argument("--versions", default=",".join(ARMS), help="with standard; default: %(default)s")
    arguments = parser.parse_args()
    arms = arguments.versions.split(",")
    rows = []
    for entry in MODELS:
        if entry.name not in arguments.models.split(","):
            continue
        image, label = held_out(arguments.num_images, entry.size)
        for name in arms:
            rows.append(arm_of(name, entry, model_of(entry), image, label))
            print({key: value for key, value in rows[-1].items() if key != "robust"}, flush=True)
        title = "AutoAttack's versions fast and next beside standard"
        path = write_result(
            "-".join(["attack-versions", *_some(arms)]), title=title, text=report(rows), data={"rows": rows}
        )
    print(path.read_text())


if __name__ == "__main__":
    main()
