"""From the first divergence of a step to its likely cause.

The first rule that finds its evidence is the diagnosis; RULES has them in this order. "Where it begins" is the first
activation that differs: the attack's own passes run the same network, and only the update's pass is seen layer by
layer. State, images behind the attack and gradients are the reference's on both sides, so a difference was made there.

    cause                        evidence
    loader                       the batch differs as it came from the host
    order of mixing and erasing  the image differs, and is what the reference makes in the other order
    mixing                       the target differs
    device augmentation          the image differs, the batch and the target do not
    dropout                      it begins at dropout or drop-path at work, or between modules where such a one belongs
    autocast                     where it begins, or before, the two sides compute in different types
    BatchNorm grouping           it begins at a BatchNorm, whose input agrees
    matmul precision             it begins at any other layer: values of one side are bf16's, or its error is
    layer                        it begins at any other layer, otherwise
    attack start                 the attack's start differs, the image does not
    attack mode                  logits or gradient of the attack differ, and no activation of the update does
    attack steps                 the attacked image differs, start and first gradient do not: other numbers of steps, or
                                 the pixels that went another way had no small gradient and there was one step
    sign flips                   the attacked image differs, start and first gradient do not, otherwise
    loss                         the loss differs, and no activation does
    reduction dtype              gradients differ, loss and activations do not; one side's are bf16's, or the
                                 network is smooth and most differ alike
    kink                         gradients differ, loss and activations do not, and the network has ReLUs or max-pooling
    backward pass                gradients differ, loss and activations do not, otherwise
    biased variance              running variances differ, all to one side; running means do not
    running statistics           running statistics differ, otherwise; no activation does
    weight decay                 updates from the same gradients differ, parallel to the weights
    clipping                     clipped gradients differ, made from the same gradients
    learning rate                updates from the same gradients differ by one factor
    optimizer                    updates from the same gradients differ, otherwise
    average                      the average differs, the updates do not
"""

import statistics
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

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

Cause = Literal[
    "loader",
    "order of mixing and erasing",
    "mixing",
    "device augmentation",
    "dropout",
    "autocast",
    "BatchNorm grouping",
    "matmul precision",
    "layer",
    "attack start",
    "attack mode",
    "attack steps",
    "sign flips",
    "loss",
    "reduction dtype",
    "kink",
    "backward pass",
    "biased variance",
    "running statistics",
    "weight decay",
    "clipping",
    "learning rate",
    "optimizer",
    "average",
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
BF16_ROUNDING: Final = (2.0**-13, 2.0**-5)  # of a product or a sum of products, TF32's included

KINK_AT_MOST: Final = 0.2  # relative length


class Diagnosis(NamedTuple):
    """Why two sides part."""

    cause: Cause
    evidence: str
    remedy: str


class Rule(NamedTuple):
    """A cause; `look` says what speaks for it in words, or None."""

    cause: Cause
    look: Callable[[Comparison, Row], str | None]
    remedy: str


def diagnose(comparison: Comparison) -> Diagnosis | None:
    """The likely cause of the first divergence; None where there is none."""
    first = comparison.first
    if first is None:
        return None
    for rule in RULES:
        if (evidence := rule.look(comparison, first)) is not None:
            return Diagnosis(rule.cause, evidence, rule.remedy)
    raise AssertionError(f"no rule for {first.place}")


def _loader(all_: Comparison, first: Row) -> str | None:
    if first.kind != "batch":
        return None
    return f"what the loader gave differs on the two sides: {first.reference.where}"


def _order(all_: Comparison, first: Row) -> str | None:
    if first.kind != "image" or not is_other_order(all_, first):
        return None
    return "the image is the one that the reference makes with mixing and erasing in the other order"


def _mixing(all_: Comparison, first: Row) -> str | None:
    is_off = any(not row.holds for row in all_.of("target"))
    return "the target differs" if first.kind in ("image", "target") and is_off else None


def _augmentation(all_: Comparison, first: Row) -> str | None:
    if first.kind != "image":
        return None
    return f"the batch as fed is equal and {first.found.share:.2%} of the pixels are not"


def _dropout(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None or "drop" not in start.reference.tags:
        return None
    return (
        f"{start.reference.where} ({start.reference.maker}) has an input that agrees and draws from the device's own "
        "generator, which differs by backend: dropout stands outside parity"
    )


def _autocast(all_: Comparison, first: Row) -> str | None:
    if first.kind not in ("attack logits", "attack gradient", "attacked", "activation", "loss"):
        return None
    change = type_change(all_, begins(all_, first) or first)
    if change is None or change.other is None:
        return None
    mark = change.reference
    return f"{mark.where} {f'({mark.maker}) ' if mark.maker else ''}is {mark.dtype} here and {change.other.dtype} there"


def _grouping(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None or "norm" not in start.reference.tags:
        return None
    makers = [start.reference.maker, "" if start.other is None else start.other.maker]
    shown = makers[0] if makers[0] == makers[1] else f"{makers[0]} here, {makers[1]} there"
    return f"{start.reference.where} has an input that agrees, and another output: {shown}"


def _matmul(all_: Comparison, first: Row) -> str | None:
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


def _layer(all_: Comparison, first: Row) -> str | None:
    start = begins(all_, first)
    if start is None:
        return None
    return f"{start.reference.where} ({start.reference.maker}) is the first layer that differs, {start.size}"


def _attack_start(all_: Comparison, first: Row) -> str | None:
    return (
        "the image is equal, its start is not: noise, radius or the rule of starts"
        if first.kind == "attack start"
        else None
    )


def _attack_mode(all_: Comparison, first: Row) -> str | None:
    if first.kind not in ("attack logits", "attack gradient"):
        return None
    return "the update's own pass agrees in every layer: the network differs in the mode of the attack"


def _steps(all_: Comparison, first: Row) -> str | None:
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


def _signs(all_: Comparison, first: Row) -> str | None:
    if first.kind != "attacked":
        return None
    size = size_at_flips(all_, first)
    small = "" if size is None else f", where the first gradient has {size:.2g} of its usual size"
    return (
        f"start and first gradient agree, and {first.found.share:.2%} of the pixels went another way{small}"
    )


def _loss(all_: Comparison, first: Row) -> str | None:
    return "all layers agree, the loss of their logits does not" if first.kind == "loss" else None


def _reduction(all_: Comparison, first: Row) -> str | None:
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


def _kink(all_: Comparison, first: Row) -> str | None:
    rows = all_.of("gradient")
    worst = max((row.found.relative for row in rows if not row.holds), default=0.0)
    if first.kind != "gradient" or not all_.has_kinks or worst > KINK_AT_MOST:
        return None
    wrong = sum(not row.holds for row in rows)
    return f"{wrong} of {len(rows)} gradients differ, by {worst:.1g} at most; activations and loss agree"


def _backward(all_: Comparison, first: Row) -> str | None:
    return "activations and loss agree, gradients do not" if first.kind == "gradient" else None


def _variance(all_: Comparison, first: Row) -> str | None:
    rows = all_.of("statistics")
    means = [row for row in rows if row.reference.where.endswith("running_mean")]
    wrong = [row for row in rows if not row.holds]
    if first.kind != "statistics" or not all(row.holds for row in means):
        return None
    side = all_to_one_side(wrong)
    if side is None:
        return None
    return f"means agree, every variance there is {side}: one side divides by n, the other by n - 1"


def _statistics(all_: Comparison, first: Row) -> str | None:
    if first.kind != "statistics":
        return None
    return "every layer's output agrees, what BatchNorm keeps of it does not"


def _decay(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update" or (cosine := parallel_to_weights(all_)) is None:
        return None
    return f"the gradients were the same, and the difference is parallel to the weights (cosine {cosine:.2f})"


def _clipping(all_: Comparison, first: Row) -> str | None:
    return "the gradients were the same, and are not behind the clipping" if first.kind == "clipped" else None


def _rate(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update" or (factor := common_factor(all_)) is None:
        return None
    return f"the gradients were the same, and every update there is {factor:.4g} times the one here"


def _optimizer(all_: Comparison, first: Row) -> str | None:
    if first.kind != "update":
        return None
    return "the gradients were the same: eps, betas, momentum, or their state"


def _average(all_: Comparison, first: Row) -> str | None:
    return "weights and statistics agree, their average does not" if first.kind == "average" else None


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "loader",
        _loader,
        "the same seeds make the same batches everywhere; look at what the sides have changed",
    ),
    Rule("order of mixing and erasing", _order, "data.erase_after_mix decides it, on every backend"),
    Rule("mixing", _mixing, "objective.mixup, cutmix and smoothing decide it"),
    Rule("device augmentation", _augmentation, "data.randaug_on=host and data.color_jitter_on=host avoid it"),
    Rule("dropout", _dropout, "model.drop_path=0 (and no dropout in model.args) compares the rest"),
    Rule("autocast", _autocast, "run.precision=float32 compares the rest; TRAIN.md has each backend's rules"),
    Rule("BatchNorm grouping", _grouping, "model.norm_stats=ghost:K means the same on every machine"),
    Rule("matmul precision", _matmul, "float32 needs highest matmul precision: no TF32, no bf16 passes"),
    Rule("layer", _layer, "look at this layer's own arithmetic"),
    Rule(
        "attack start",
        _attack_start,
        "the noise is a function of the samples' seeds alone; this should not be",
    ),
    Rule("attack mode", _attack_mode, "objective.attack.mode=train attacks the network as it trains"),
    Rule("attack steps", _steps, "objective.attack decides it, and objective.warmup"),
    Rule("sign flips", _signs, "smooth activations have fewer; both images are right"),
    Rule("loss", _loss, "look at the loss' own arithmetic and type"),
    Rule(
        "reduction dtype",
        _reduction,
        "gradients in float32: run.precision=float32, and reductions in float32",
    ),
    Rule("kink", _kink, "a ReLU within rounding of zero does this now and then; smooth activations do not"),
    Rule("backward pass", _backward, "look at who changes gradients before the update"),
    Rule(
        "biased variance", _variance, "harmless for large batches; model.norm_stats=ghost:K avoids native ops"
    ),
    Rule("running statistics", _statistics, "look at who writes these buffers"),
    Rule("weight decay", _decay, "optim.weight_decay and decay_norm_weight decide it"),
    Rule("clipping", _clipping, "optim.clip_norm and clip_agc decide it"),
    Rule("learning rate", _rate, "optim.lr and its schedule decide it"),
    Rule("optimizer", _optimizer, "optim.eps, betas and momentum decide it"),
    Rule("average", _average, "optim.ema decides it; look at who writes the average"),
)
