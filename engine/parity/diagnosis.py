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

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, get_args

from engine.parity import signs
from engine.parity.comparison import Comparison, Row

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


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "loader",
        signs.loader,
        "the same seeds make the same batches everywhere; look at what the sides have changed",
    ),
    Rule("order of mixing and erasing", signs.order, "data.erase_after_mix decides it, on every backend"),
    Rule("mixing", signs.mixing, "objective.mixup, cutmix and smoothing decide it"),
    Rule(
        "device augmentation",
        signs.augmentation,
        "data.randaug_on=host and data.color_jitter_on=host avoid it",
    ),
    Rule("dropout", signs.dropout, "model.drop_path=0 (and no dropout in model.args) compares the rest"),
    Rule(
        "autocast",
        signs.autocast,
        "run.precision=float32 compares the rest; TRAIN.md has each backend's rules",
    ),
    Rule("BatchNorm grouping", signs.grouping, "model.norm_stats=ghost:K means the same on every machine"),
    Rule("matmul precision", signs.matmul, "float32 needs highest matmul precision: no TF32, no bf16 passes"),
    Rule("layer", signs.layer, "look at this layer's own arithmetic"),
    Rule(
        "attack start",
        signs.attack_start,
        "the noise is a function of the samples' seeds alone; this should not be",
    ),
    Rule("attack mode", signs.attack_mode, "objective.attack.mode=train attacks the network as it trains"),
    Rule("attack steps", signs.steps, "objective.attack decides it, and objective.warmup"),
    Rule("sign flips", signs.flips, "smooth activations have fewer; both images are right"),
    Rule("loss", signs.loss, "look at the loss' own arithmetic and type"),
    Rule(
        "reduction dtype",
        signs.reduction,
        "gradients in float32: run.precision=float32, and reductions in float32",
    ),
    Rule(
        "kink", signs.kink, "a ReLU within rounding of zero does this now and then; smooth activations do not"
    ),
    Rule("backward pass", signs.backward, "look at who changes gradients before the update"),
    Rule(
        "biased variance",
        signs.variance,
        "harmless for large batches; model.norm_stats=ghost:K avoids native ops",
    ),
    Rule("running statistics", signs.running_statistics, "look at who writes these buffers"),
    Rule("weight decay", signs.decay, "optim.weight_decay and decay_norm_weight decide it"),
    Rule("clipping", signs.clipping, "optim.clip_norm and clip_agc decide it"),
    Rule("learning rate", signs.rate, "optim.lr and its schedule decide it"),
    Rule("optimizer", signs.optimizer, "optim.eps, betas and momentum decide it"),
    Rule("average", signs.average, "optim.ema decides it; look at who writes the average"),
)
