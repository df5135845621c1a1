"""What each rule of the diagnosis looks for: a function gives what speaks for its cause in words, or None.

All take the comparison and its first divergence; engine/parity/diagnosis.py has the order in which they are asked.
"Here" is the reference, "there" the other side.
"""

import statistics
from typing import Final

from engine.parity.comparison import Comparison, Row
from engine.parity.evidence import (
    all_to_one_side,
    begins,
    common_factor,
    is_other_order,
    parallel_to_weights,
    size_at_flips,
    type_change,
)
from engine.parity.mark import is_rounded_to_bf16

BF16_ROUNDING: Final = (2.0**-13, 2.0**-5)  # of a product or a sum of products, TF32's included

KINK_AT_MOST: Final = 0.2  # relative length


def loader(all_: Comparison, first: Row) -> str | None:
    if first.kind != "batch":
        return None
    return f"what the loader gave differs on the two sides: {first.reference.where}"


def order(all_: Comparison, first: Row) -> str | None:
    if first.kind != "image" or not is_other_order(all_, first):
        return None
    return "the image is the one that the reference makes with mixing and erasing in the other order"


def mixing(all_: Comparison, first: Row) -> str | None:
    is_off = any(not row.holds for row in all_.of("target"))
    return "the target differs" if first.kind in ("image", "target") and is_off else None


def augmentation(all_: Comparison, first: Row) -> str | None:
    if first.kind != "image":
        return None
    return f"the batch as fed is equal and {first.found.share:.2%} of the pixels are not"


def dropout(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None or "drop" not in start.reference.tags:
        return None
    return (
        f"{start.reference.where} ({start.reference.maker}) has an input that agrees and draws from the device's own "
        "generator, which differs by backend: dropout stands outside parity"
    )


def autocast(all_: Comparison, first: Row) -> str | None:
    if first.kind not in ("attack logits", "attack gradient", "attacked", "activation", "loss"):
        return None
    change = type_change(all_, begins(all_, first) or first)
    if change is None or change.other is None:
        return None
    mark = change.reference
    return f"{mark.where} {f'({mark.maker}) ' if mark.maker else ''}is {mark.dtype} here and {change.other.dtype} there"


def grouping(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None or "norm" not in start.reference.tags:
        return None
    makers = [start.reference.maker, "" if start.other is None else start.other.maker]
    shown = makers[0] if makers[0] == makers[1] else f"{makers[0]} here, {makers[1]} there"
    return f"{start.reference.where} has an input that agrees, and another output: {shown}"


def matmul(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None or start.other is None:
        return None
    rounded = [is_rounded_to_bf16(start.reference), is_rounded_to_bf16(start.other)]
    if rounded[0] != rounded[1]:
        return f"{start.reference.where} gives float32 whose last 16 bits are zero {'here' if rounded[0] else 'there'}"
    low, high = BF16_ROUNDING
    if "matmul" in start.reference.tags and low < start.found.relative < high:
        return (
            f"{start.reference.where} multiplies, its input agrees, and its error is what bf16 or TF32 make"
        )
    return None


def layer(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None:
        return None
    return f"{start.reference.where} ({start.reference.maker}) is the first layer that differs, {start.size}"


def attack_start(all_: Comparison, first: Row) -> str | None:
    return (
        "the image is equal, its start is not: noise, radius or the rule of starts"
        if first.kind == "attack start"
        else None
    )


def attack_mode(all_: Comparison, first: Row) -> str | None:
    if first.kind not in ("attack logits", "attack gradient"):
        return None
    return "the update's own pass agrees in every layer: the network differs in the mode of the attack"


def steps(all_: Comparison, first: Row) -> str | None:
    steps = [answer.attack_steps for answer in all_.answers]
    if first.kind != "attacked":
        return None
    if steps[0] != steps[1]:
        return f"{steps[0]} steps here, {steps[1]} there"
    size = size_at_flips(all_, first)
    if steps[0] > 1 or size is None or size < 0.1:
        return None
    return (
        f"where pixels went another way the gradient has {size:.2g} of its usual size: other steps or radius"
    )


def flips(all_: Comparison, first: Row) -> str | None:
    if first.kind != "attacked":
        return None
    size = size_at_flips(all_, first)
    small = "" if size is None else f", where the first gradient has {size:.2g} of its usual size"
    return (
        f"start and first gradient agree, and {first.found.share:.2%} of the pixels went another way{small}"
    )


def loss(all_: Comparison, first: Row) -> str | None:
    return "all layers agree, the loss of their logits does not" if first.kind == "loss" else None


def reduction(all_: Comparison, first: Row) -> str | None:
    if first.kind != "gradient":
        return None
    rows = [row for row in all_.of("gradient") if row.other is not None]
    rounded = [[row.other is not None and is_rounded_to_bf16(row.other) for row in rows]]
    rounded.insert(0, [is_rounded_to_bf16(row.reference) for row in rows])
    shares = [sum(side) / len(side) for side in rounded]
    if abs(shares[0] - shares[1]) > 0.5:
        side = "here" if shares[0] > shares[1] else "there"
        return (
            f"{max(shares):.0%} of the gradients are bf16 kept in float32 {side}: summed or rounded in bf16"
        )
    typical = statistics.median(row.found.relative for row in rows)
    if not all_.has_kinks and BF16_ROUNDING[0] < typical < BF16_ROUNDING[1]:
        return f"most gradients differ alike, by {typical:.1g}: products or sums of the backward pass below float32"
    return None


def kink(all_: Comparison, first: Row) -> str | None:
    rows = all_.of("gradient")
    worst = max((row.found.relative for row in rows if not row.holds), default=0.0)
    if first.kind != "gradient" or not all_.has_kinks or worst > KINK_AT_MOST:
        return None
    wrong = sum(not row.holds for row in rows)
    return f"{wrong} of {len(rows)} gradients differ, by {worst:.1g} at most; activations and loss agree"


def backward(all_: Comparison, first: Row) -> str | None:
    return "activations and loss agree, gradients do not" if first.kind == "gradient" else None


def variance(all_: Comparison, first: Row) -> str | None:
    rows = all_.of("statistics")
    means = [row for row in rows if row.reference.where.endswith("running_mean")]
    wrong = [row for row in rows if not row.holds]
    if first.kind != "statistics" or not all(row.holds for row in means):
        return None
    side = all_to_one_side(wrong)
    if side is None:
        return None
    return f"means agree, every variance there is {side}: one side divides by n, the other by n - 1"


def running_statistics(all_: Comparison, first: Row) -> str | None:
    if first.kind != "statistics":
        return None
    return "every layer's output agrees, what BatchNorm keeps of it does not"


def decay(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update" or (cosine := parallel_to_weights(all_)) is None:
        return None
    return f"the gradients were the same, and the difference is parallel to the weights (cosine {cosine:.2f})"


def clipping(all_: Comparison, first: Row) -> str | None:
    return "the gradients were the same, and are not behind the clipping" if first.kind == "clipped" else None


def rate(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update" or (factor := common_factor(all_)) is None:
        return None
    return f"the gradients were the same, and every update there is {factor:.4g} times the one here"


def optimizer(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update":
        return None
    return "the gradients were the same: eps, betas, momentum, or their state"


def average(all_: Comparison, first: Row) -> str | None:
    return "weights and statistics agree, their average does not" if first.kind == "average" else None
