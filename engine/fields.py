"""The six sections of a recipe and their defaults; each field is checked by itself.

What one field says about another (mixing an odd batch, say) is checked in engine/fits.py.
"""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from engine.health_fields import HealthSection
from engine.values import (
    BelowOne,
    Betas,
    Channels,
    JitterStrengths,
    Magnitude,
    ModelArgument,
    Points,
    PositiveRadius,
    Probability,
    Radius,
    Range,
    Section,
    Spread,
    Window,
)
from engine.weight_fields import DistillSection, InitSection


class DataSection(Section):
    train: str  # folder of shards, or its URL; tars where `indexed` is false
    val: str | None = None  # None: nothing is evaluated
    suites: str | None = (
        None  # folder, or URL, of shifted evaluation sets, one folder of shards each, named by suite
    )
    cache: str | None = None  # folder for remote shards; None: ROBUST_BITS_CACHE, else one in the home folder
    window: Window | None = None  # shards shuffled together; None: all of a folder, WINDOW_OF_URL of a URL
    indexed: bool = True  # false: `train` is read in order as it comes, and nothing is known of it before
    epoch_images: PositiveInt | None = None  # images of an epoch, where no index tells
    image_size: PositiveInt  # pixels, square
    sizes: Points[PositiveInt] | None = None  # of training images over epochs; the last one is image_size
    num_classes: PositiveInt | None = None  # None: as many as the index of `train` names
    num_workers: NonNegativeInt = 2
    stuck_after: PositiveFloat = 1800.0  # seconds that a worker may take for one image before it is replaced
    max_bad: Probability = 0.001  # share of train's images that may be bad; others stand in for them
    eval_bad: Literal["stop", "wrong"] = "stop"  # what a bad image does to an evaluation
    scale: Range = (0.08, 1.0)  # RandomResizedCrop: share of the area
    ratio: Range = (3 / 4, 4 / 3)  # RandomResizedCrop: width over height
    flip: Probability = 0.5
    randaug: Annotated[str, Field(pattern=r"^rand-m\d")] | None = None  # timm's form, rand-m9-mstd0.5-inc1
    randaug_on: Literal["host", "device"] = "host"  # Pillow in the loader, or batched in the train step
    color_jitter: JitterStrengths | None = None  # brightness, contrast, saturation[, hue]
    color_jitter_on: Literal["host", "device"] = "host"  # as randaug_on
    erase_prob: Probability = 0.0  # random erasing; on the device
    erase_mode: Literal["const", "rand", "pixel"] = "const"
    erase_count: PositiveInt = 1  # boxes of an image, at most
    erase_after_mix: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    eval_interpolation: Literal["bicubic", "bilinear"] | None = None  # None: as `interpolation`
    resampler: Literal["torch", "pillow"] = "torch"  # of training; pillow: timm's pixels to the bit
    decode: Literal["full", "scaled"] = "full"  # scaled: large crops of training are reduced while decoded
    apply_exif: bool = False  # turn pictures as their EXIF asks, in training and evaluation
    repeats: PositiveInt = 1  # repeated augmentation: crops of each image, decoded once
    eval_resize: Literal["crop", "squash", "none"] = "crop"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = (
        0.875  # used by `crop`: resize the short side to size / crop_pct
    )


# local, global, ghost:64, or such as groups:4, groups:2x8:modulo, groups:4:average
_GROUPS = r"groups:[1-9][0-9]*(x[1-9][0-9]*)?(:modulo)?(:average)?"
NORM_STATS = rf"^(local|global|ghost:[1-9][0-9]*|{_GROUPS})$"

SET_ELSEWHERE = (
    *("name", "num_classes", "image_size", "in_chans", "mean", "std", "norm_stats", "native_norm"),
    *("num_devices", "reduce", "world_size", "drop_path", "split_norm", "pretrained", "recompute"),
)


def _free(args: dict[str, ModelArgument]) -> dict[str, ModelArgument]:
    if taken := [name for name in SET_ELSEWHERE if name in args]:
        raise ValueError(f"has {taken[0]}, which is set by other fields or by the toolkit; remove it")
    return args


class ModelSection(Section):
    name: Annotated[str, Field(min_length=1)]
    norm_stats: Annotated[str, Field(pattern=NORM_STATS)] = "local"
    split_norm: bool = False  # a second BatchNorm for attacked images: objective.kind advprop
    drop_path: BelowOne = 0.0
    recompute: bool = False  # gradient checkpointing: blocks run again in the backward pass
    init: InitSection | None = None  # weights to start from; None: random ones
    trainable: Literal["all", "head"] = "all"  # head: a linear probe, the rest stays as it is
    mean: Channels = (0.485, 0.456, 0.406)
    std: Spread = (0.229, 0.224, 0.225)
    # handed to the model's constructor as they are
    args: Annotated[dict[str, ModelArgument], AfterValidator(_free)] = Field(default_factory=dict)


class OptimSection(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat
    lr_base_batch: PositiveInt | None = None  # None: lr is used as it is; else see schedule.scaled_lr
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    lr_counts_accumulate: bool = (
        True  # false: the batch that scales lr is that of one forward (Wang et al., code)
    )
    scale_all_lr: bool = False  # scale warmup_lr and min_lr by the same factor
    weight_decay: NonNegativeFloat = 0.0
    betas: Betas = (0.9, 0.999)  # adamw
    eps: PositiveFloat = 1e-8  # adamw
    momentum: BelowOne = 0.9  # sgd
    nesterov: bool = True  # sgd
    clip_norm: PositiveFloat | None = None
    clip_agc: PositiveFloat | None = None  # adaptive clipping: gradient over weight, see engine/clipping.py
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # lr factor from each layer to the one below
    )
    decay_norm_weight: bool = (
        False  # the scale of norms is decayed too, as in Bai et al.'s adversarial ResNets
    )
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_lr: NonNegativeFloat = 0.0
    min_lr: NonNegativeFloat = 0.0  # the end of `cosine`; `step` and `constant` do not use it
    step_epochs: PositiveInt = 30  # `step`: multiply by step_gamma every so many epochs
    step_gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_prefix: Literal["none", "step", "all"] = (
        "none"  # whether what follows begins anew after the warm-up
    )
    update: Literal["step", "epoch", "epoch_late"] = (
        "step"  # a new rate at every optimizer update, or a staircase of epochs; late: one epoch behind
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay per optimizer update
    ema_warmup: bool = False  # a smaller decay at first, see schedule.ema_weight
    accumulate: PositiveInt = 1  # global batches per optimizer update


ObjectiveKind = Literal["clean", "adversarial", "trades", "mart", "advprop", "free"]
LossName = Literal["ce", "bce"]


class AttackSection(Section):
    """The attack of training: it keeps its last iterate."""

    norm: Literal["linf", "l2"]
    eps: PositiveRadius  # in this norm, pixel units
    step_size: PositiveRadius
    steps: PositiveInt
    random_start: bool = True
    clean_prob: Probability = 0.0  # share of the samples that start from the clean image all the same
    # batch_normal: a global batch starts at noise if a standard normal number exceeds clean_prob (Bai et al., code)
    start_rule: Literal["sample", "batch_normal"] = "sample"
    targeted: bool = False  # towards a random other class, a sample each
    # the model's mode while it is attacked; groups: eval, by the running statistics of each image's own group
    mode: Literal["eval", "train", "groups"] = "eval"


class WarmupSection(Section):
    """Augmentation values over epochs; each list of [epoch, value] replaces a number of the objective.

    `table` holds a value until the next point, `linear` goes straight from point to point; after the last one
    the value stays. A warm-up of `eps` scales the attack's step_size in proportion: it keeps its shape.
    """

    interpolation: Literal["table", "linear"] = "table"
    magnitude: Points[Magnitude] | None = None  # RandAugment's M, 0..10
    mix_prob: Points[Probability] | None = None
    cutmix: Points[NonNegativeFloat] | None = None  # alpha
    switch_prob: Points[Probability] | None = None
    eps: Points[Radius] | None = None  # radius of the training attack
    steps: Points[PositiveInt] | None = None  # of the training attack


# Bai et al. 2021 (arXiv 2111.05464): the table of the released code with its dip of mix_prob at epochs 8, 9.
_BAI2021 = WarmupSection(
    magnitude=((0, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9)),
    mix_prob=((0, 0.5), (1, 0.6), (2, 0.7), (3, 0.8), (4, 0.9), (5, 1.0), (8, 0.9), (9, 0.95), (10, 1.0)),
    cutmix=((0, 0.0), (6, 1.0)),
    switch_prob=((0, 0.0), (6, 0.1), (7, 0.2), (8, 0.3), (9, 0.4), (10, 0.5)),
)
# The same as the text describes it: straight ramps, no dip.
_SMOOTH = WarmupSection(
    interpolation="linear",
    magnitude=((0, 1), (1, 1), (9, 9)),
    mix_prob=((0, 0.5), (5, 1.0)),
    cutmix=((0, 0.0), (5, 0.0), (6, 1.0)),
    switch_prob=((0, 0.0), (5, 0.0), (10, 0.5)),
)
WARMUP_PRESETS = {"bai2021": _BAI2021, "smooth": _SMOOTH}


def _preset(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in WARMUP_PRESETS:
        raise ValueError(
            f"is {value!r}, but the presets are {', '.join(WARMUP_PRESETS)}; write one, a mapping or null"
        )
    return WARMUP_PRESETS[value]


class ObjectiveSection(Section):
    kind: ObjectiveKind = "clean"
    loss: LossName = "ce"  # bce: timm's binary cross-entropy, mean over the classes
    clean_weight: BelowOne = 0.0  # adversarial: share of the loss on the clean images
    beta: NonNegativeFloat = 6.0  # trades, mart: weight of the divergence
    replays: PositiveInt = 4  # free: updates on each batch
    smoothing: BelowOne = 0.0
    mixup: NonNegativeFloat = 0.0  # alpha of Beta(alpha, alpha); 0 is off
    cutmix: NonNegativeFloat = 0.0
    mix_prob: Probability = 1.0
    switch_prob: Probability = 0.5  # share of cutmix where both are on
    mix_group: PositiveInt | None = None  # samples that share one draw; None: the whole global batch
    attack: AttackSection | None = None
    distill: DistillSection | None = None
    warmup: Annotated[WarmupSection | None, BeforeValidator(_preset)] = None


class RunSection(Section):
    output: str | None = None
    seed: NonNegativeInt = 0
    epochs: Annotated[int, Field(gt=0, le=100_000)]
    batch_size: PositiveInt  # global: over all devices, for one forward pass
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    # of weight gradients while they are summed over devices and processes
    reduce_dtype: Literal["float32", "bf16"] = "float32"
    deterministic: bool = False
    report_every: PositiveInt = 50  # steps
    checkpoint_every: NonNegativeInt = 0  # steps; 0: at the end of each epoch
    keep_checkpoints: PositiveInt = 2
    best: str | None = (
        None  # name of an evaluation with `every`: its best weights stay as checkpoints/best.pt
    )
    gallery_images: NonNegativeInt = 8  # kept of each evaluation after the last epoch, for the report
    tensorboard: bool = True  # events in tensorboard/ of the run folder
    wandb: Annotated[str, Field(min_length=1)] | None = None  # project of Weights & Biases; None: off
    preview_images: NonNegativeInt = (
        8  # of a training batch, for the trackers, at most once an epoch; 0: none
    )
    max_steps: PositiveInt | None = None  # stop early; the schedule does not change
    # a file, an http address or gce: what announces that the machine is taken away, see engine/maintenance.py
    maintenance_event: Annotated[str, Field(min_length=1)] | None = None
    health: HealthSection = HealthSection()
