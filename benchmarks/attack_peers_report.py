"""What attack_peers.py found, as text: a pooled test on images, CPU-seconds, passes.

Imported by attack_peers.py; not run by itself.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import binomtest

from benchmarks.record import markdown_table

LEVEL = 0.05
GOAL_CPU = 0.6  # of theirs, on small models
Row = dict[str, Any]


class Pooled(NamedTuple):
    """Images of all models, each once: its verdicts over the seeds are not independent."""

    num_images: int
    ours_less: int  # images that we break in more seeds than they
    ours_more: int
    difference: float  # ours minus theirs, robust accuracy
    half_width: float  # of its 95 % interval
    p_value: float  # one-sided, of as many `ours_more` if neither were stronger

    @property
    def is_not_above(self) -> bool:
        return self.p_value >= LEVEL


def pooled(rows: Sequence[Row]) -> Pooled:
    """Sign test over (model, image): an image's score is in how many seeds more it is left by us."""
    scores: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        pairs = zip(row["ours"]["robust"], row["theirs"]["robust"], strict=True)
        for number, (mine, other) in enumerate(pairs):
            scores.setdefault((row["model"], number), []).append(int(mine) - int(other))
    sums = [sum(values) for values in scores.values()]
    means = [sum(values) / len(values) for values in scores.values()]
    more, less = sum(s > 0 for s in sums), sum(s < 0 for s in sums)
    mean = sum(means) / len(means)
    spread = math.sqrt(sum((m - mean) ** 2 for m in means) / max(len(means) - 1, 1))
    p_value = binomtest(more, more + less, alternative="greater").pvalue if more + less else 1.0
    return Pooled(len(means), less, more, mean, 1.96 * spread / math.sqrt(len(means)), float(p_value))


def report(rows: Sequence[Row], pgd: Sequence[Row]) -> list[str]:
    """Lines of the Markdown result."""
    test = pooled(rows)
    mine, other = (sum(row[side]["cpu_s"] for row in rows) for side in ("ours", "theirs"))
    cpu_ratio = mine / other
    return [
        f"`standard` and torchattacks 3.5.1 (APGD and APGDT steps=100, FAB steps=100 multi_targeted, Square "
        f"n_queries=5000 resc_schedule=False), {rows[0]['norm']}, {rows[0]['num_images']} images of "
        f"{rows[0]['size']} px, {rows[0]['lanes']} in a batch.",
        "",
        f"Pooled over {len({row['model'] for row in rows})} models and {len({row['seed'] for row in rows})} seeds, "
        f"{test.num_images} images: robust accuracy ours minus theirs {100 * test.difference:+.2f} +- "
        f"{100 * test.half_width:.2f} points; we break {test.ours_less} images more often than they, and "
        f"{test.ours_more} less often. One-sided sign test p = {test.p_value:.3f}: "
        + ("ours is not above theirs." if test.is_not_above else "OURS IS ABOVE THEIRS."),
        "",
        f"CPU-seconds: {mine:.0f} against {other:.0f}, {cpu_ratio:.2f} of theirs (goal {GOAL_CPU}: "
        + ("met)." if cpu_ratio <= GOAL_CPU else "missed)."),
        "",
        *_accuracies(rows),
        "",
        *_passes(rows),
        "",
        *_pgd(pgd),
    ]


def _accuracies(rows: Sequence[Row]) -> list[str]:
    header = ["model", "seed", "eps", "clean", "ours, after each", "theirs, after each", "CPU-s", "ratio"]
    cells = []
    for row in rows:
        mine, other = row["ours"], row["theirs"]
        after = [
            " ".join(f"{100 * share:.1f}" for share in list(side["left"].values())[1:])
            for side in (mine, other)
        ]
        times = f"{mine['cpu_s']:.0f} / {other['cpu_s']:.0f}"
        clean = f"{100 * mine['left']['clean']:.1f}"
        ratio = f"{mine['cpu_s'] / other['cpu_s']:.2f}"
        cells.append([row["model"], row["seed"], f"{row['eps']:.4f}", clean, *after, times, ratio])
    return markdown_table(header, cells)


def _passes(rows: Sequence[Row]) -> list[str]:
    header = [
        "model",
        "seed",
        "survivors",
        "units each",
        "broken",
        "units each",
        "lanes in use",
        "units / theirs",
    ]
    cells = [
        [
            row["model"],
            row["seed"],
            row["survivors"],
            _number(row["units_per_survivor"]),
            row["broken"],
            _number(row["units_per_broken"]),
            f"{100 * row['useful_units'] / row['ours']['units']:.0f} %",
            f"{row['ours']['units'] / row['theirs']['units']:.2f}",
        ]
        for row in rows
    ]
    return [
        f"Passes in units of a forward pass of one image (a backward pass to the image counts two). A survivor costs "
        f"{rows[0]['analytic_units']:,.0f} by definition; the published code: about 11,600. `Lanes in use`: the share "
        "of all passes that worked on an unanswered question.",
        "",
        *markdown_table(header, cells),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _pgd(rows: Sequence[Row]) -> list[str]:
    kinds = [key for key in rows[0] if isinstance(rows[0][key], dict)]
    header = ["model", *kinds]
    cells = [
        [row["model"], *(f"{100 * row[kind]['robust']:.1f} % ({row[kind]['differ']})" for kind in kinds)]
        for row in rows
    ]
    total = sum(row[kind]["differ"] for row in rows for kind in kinds)
    judged = sum(row["num_images"] * len(kinds) for row in rows)
    return [
        f"PGD beside foolbox's and torchattacks', image by image, from the clean image and the same "
        f"random start: {total} of {judged} verdicts differ. Robust accuracy, in brackets the images that differ:",
        "",
        *markdown_table(header, cells),
    ]
