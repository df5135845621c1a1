"""What shape_bias.py found, in tables: dialled shape bias, and the coverage of 95 % intervals."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import markdown_table
from engine.metrics.intervals import wilson_interval
from engine.metrics.shape_bias import blind_to_texture

SIZES: Final = (100, 250, 1000)  # images of a sample
ROUNDS: Final = 20  # partitions of all images into samples
SHAPE_TEXT: Final = (
    "Correlation: how often the texture in a training image is its label's own; the others have any. Judged by `eval`",
    "on the same 1,000 cue conflicts (shape of one class, texture of another). Shape bias: decisions for the shape's",
    "class among those for the shape's or the texture's, [95 % Wilson interval]. Blind: the shape bias of a model that",
    "is right as often and sees no texture, its errors spread evenly over the classes. The longer arms were added when",
    "the first four had been seen: a ViT that has learned little yet has not found the texture either.",
)
COVERAGE_TEXT: Final = (
    "The rate at which a sample's 95 % Wilson",
    "interval holds the truth, [95 % interval of that rate], stands beside the rate that follows from the binomial",
    "law alone: Wilson's intervals hold 95 % on average over shares, not at each. Of shape bias n counts all",
    "decisions, and the law is summed over the samples' numbers of those for shape or texture.",
)


def report(
    arms: Mapping[str, Mapping[str, Any]],
    fresh: Mapping[str, Mapping[str, Any]],
    *,
    covered: str,
    num_classes: int,
) -> tuple[list[str], dict[str, Any]]:
    """Markdown lines and the JSON's content."""
    tried = [*_accuracy(fresh["val"]["rows"]), *_shape_bias(fresh["cue64-conflict"]["rows"])]
    value = float((fresh["val"]["rows"][:, 0] == fresh["val"]["rows"][:, 2]).mean())
    low, high = arms[covered]["clean"]["interval"]
    cpu_s = sum(sum(arm["costs"].values()) for arm in arms.values()) + sum(f["cpu_s"] for f in fresh.values())
    text = [
        f"cue64 at 64 px, {num_classes} of its classes, 6,000 training images, one seed; {cpu_s / 60:.0f} CPU-minutes",
        "on shared cores. Smaller than the recipes ask for; arms called longer go on from the weights of their twins.",
        *SHAPE_TEXT,
        "",
        *markdown_table(
            [
                "arm",
                "epochs",
                "clean",
                "conflict",
                "shape bias",
                "blind",
                "decisions shape / texture / other",
            ],
            [_arm_row(name, arm, num_classes) for name, arm in arms.items()],
        ),
        "",
        *_dialled(arms),
        "",
        f"Coverage: {covered} judged {len(fresh['val']['rows']):,} fresh scenes and",
        f"{len(fresh['cue64-conflict']['rows']):,} fresh cue conflicts; their shares are taken for the truth.",
        f"Disjoint samples of n of them, {ROUNDS} partitions. {COVERAGE_TEXT[0]}",
        *COVERAGE_TEXT[1:],
        "",
        *markdown_table(
            ["what", "truth", "n", "samples", "holds the truth", "by the law"],
            [_tried_row(one) for one in tried],
        ),
        "",
        f"The interval that `eval` printed for {covered}'s 1,000 validation images, "
        f"[{100 * low:.2f}, {100 * high:.2f}],",
        f"{'holds' if low <= value <= high else 'does not hold'} the {100 * value:.2f} % of the fresh ones.",
    ]
    data = {"arms": dict(arms), "coverage": tried, "fresh_top1": value, "cpu_s": round(cpu_s, 1)}
    return text, data


def _percent(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _arm_row(name: str, arm: Mapping[str, Any], num_classes: int) -> list[str]:
    clean, conflict, bias = arm["clean"], arm["conflict"], arm["conflict"]["shape_bias"]
    return [
        name,
        str(arm["epochs"]),
        _percent(clean["top1"], clean["interval"]),
        _percent(conflict["top1"], conflict["interval"]),
        _percent(bias["value"], bias["interval"]),
        f"{100 * blind_to_texture(conflict['top1'], num_classes):.1f}",
        f"{bias['shape']} / {bias['texture']} / {bias['other']}",
    ]


def _dialled(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each model: whether the dial shows."""
    lines = []
    for model in dict.fromkeys(arm["model"] for arm in arms.values()):
        own = sorted((a for a in arms.values() if a["model"] == model), key=lambda a: float(a["correlation"]))
        if len(own) == 1:
            continue
        first, last = (arm["conflict"]["shape_bias"] for arm in (own[0], own[-1]))
        apart = first["interval"][0] > last["interval"][1]
        lines.append(
            f"- {model}: from correlation {own[0]['correlation']:g} to {own[-1]['correlation']:g} the shape bias goes "
            f"from {_percent(first['value'], first['interval'])} to {_percent(last['value'], last['interval'])}; the "
            f"intervals {'lie apart' if apart else 'overlap: the dial does not show'}."
        )
    return lines


# ---- coverage


def _accuracy(rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    right = (rows[:, 0] == rows[:, 2]).astype(np.int64)
    ones = np.ones_like(right)
    return [_tried("accuracy", right, ones, size) for size in SIZES]


def _shape_bias(rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Decisions for a third class take part in drawing a sample and not in the share."""
    shape = (rows[:, 2] == rows[:, 0]).astype(np.int64)
    decided = shape + (rows[:, 2] == rows[:, 1])
    return [_tried("shape bias", shape, decided, size) for size in SIZES]


def _tried(what: str, hits: NDArray[np.int64], counted: NDArray[np.int64], size: int) -> dict[str, Any]:
    """Samples without replacement: those of one partition share no image, those of two may."""
    truth = float(hits.sum() / counted.sum())
    draw = np.random.default_rng(20261120)
    held: list[bool] = []
    law: list[float] = []
    exact = _remembered(truth)
    for _ in range(ROUNDS):
        order = draw.permutation(len(hits))[: len(hits) // size * size].reshape(-1, size)
        for k, n in zip(hits[order].sum(1).tolist(), counted[order].sum(1).tolist(), strict=True):
            low, high = wilson_interval(k, n)
            held.append(low <= truth <= high)
            law.append(exact(n))
    num = len(held)
    # Partitions repeat the same images: the rate is as sure as one partition of distinct samples makes it, at least.
    distinct = len(hits) // size
    return {
        "what": what,
        "truth": truth,
        "size": size,
        "samples": num,
        "rate": sum(held) / num,
        "interval": list(wilson_interval(round(sum(held) / ROUNDS), distinct)),
        "law": sum(law) / num,
    }


def _remembered(truth: float) -> Callable[[int], float]:
    known: dict[int, float] = {}

    def coverage(n: int) -> float:
        if n not in known:
            known[n] = exact_coverage(n, truth)
        return known[n]

    return coverage


def exact_coverage(n: int, share: float) -> float:
    """Probability that the 95 % Wilson interval of a binomial count of `n` holds its own `share`."""
    total = 0.0
    for k in range(n + 1):
        low, high = wilson_interval(k, n)
        if low <= share <= high:
            total += math.exp(_log_binomial(n, k) + k * math.log(share) + (n - k) * math.log1p(-share))
    return total


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _tried_row(one: Mapping[str, Any]) -> list[str]:
    return [
        str(one["what"]),
        f"{100 * one['truth']:.2f} %",
        str(one["size"]),
        f"{one['samples']:,}",
        f"{100 * one['rate']:.1f} % [{100 * one['interval'][0]:.1f}, {100 * one['interval'][1]:.1f}]",
        f"{100 * one['law']:.1f} %",
    ]
