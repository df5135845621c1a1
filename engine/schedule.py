"""Learning rate, average and augmentation values as pure functions of recipe and step: nothing to save or restore."""

import math
from dataclasses import dataclass

from engine.fields import ObjectiveSection, OptimSection

EMA_WARMUP_POWER = 2 / 3


def scaled_lr(optim: OptimSection, global_batch: int) -> float:
    """The peak learning rate for `global_batch` images per forward pass.

    lr * B / lr_base_batch (or its square root) with B = global_batch * accumulate, the images of one update;
    without `lr_counts_accumulate` B = global_batch.
    """
    return optim.lr * _lr_factor(optim, global_batch)


def scaled_min_lr(optim: OptimSection, global_batch: int) -> float:
    """min_lr, scaled like lr under `scale_all_lr`."""
    return optim.min_lr * (_lr_factor(optim, global_batch) if optim.scale_all_lr else 1.0)


def lr_at(optim: OptimSection, step: int, *, steps_per_epoch: float, epochs: int, global_batch: int) -> float:
    """The learning rate of optimizer update `step` (0 is the first), `steps_per_epoch` updates to an epoch.

    t is the absolute epoch: a fraction where `update` is "step", its floor where it is "epoch" (then equal to
    timm's schedulers with t_in_epochs, stepped before each epoch), and one less than that where it is
    "epoch_late", but for the first epoch: DeiT's and Bai et al.'s code steps the scheduler by the number of the
    epoch that has just ended. Warm-up is linear from warmup_lr. After it

        none   cosine of t over `epochs`, drops by t: the warm-up is a part of the schedule
        step   of t - warmup_epochs over `epochs` (timm's warmup_prefix=True): the cosine does not reach its end
        all    of t - warmup_epochs over epochs - warmup_epochs

    by `warmup_prefix`; the cosine is min + (lr - min) * (1 + cos(pi * t / epochs)) / 2.
    """
    assert step >= 0, f"step {step}"
    assert steps_per_epoch > 0, f"{steps_per_epoch} steps per epoch"
    t = _time(optim, step, steps_per_epoch)
    peak = scaled_lr(optim, global_batch)
    if t < optim.warmup_epochs:
        start = optim.warmup_lr * (_lr_factor(optim, global_batch) if optim.scale_all_lr else 1.0)
        return start + t * (peak - start) / optim.warmup_epochs
    t -= 0.0 if optim.warmup_prefix == "none" else optim.warmup_epochs
    if optim.schedule == "constant":
        return peak
    if optim.schedule == "step":
        return float(peak * optim.step_gamma ** math.floor(t / optim.step_epochs + 1e-9))
    length = epochs - (optim.warmup_epochs if optim.warmup_prefix == "all" else 0.0)
    lowest = scaled_min_lr(optim, global_batch)
    return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * t / length)) if t < length else lowest


def _time(optim: OptimSection, step: int, steps_per_epoch: float) -> float:
    if optim.update == "step":
        return step / steps_per_epoch
    # 7 batches to an epoch and accumulate 3 are 7 / 3 updates: 35 / (7 / 3) is just below 15 in floats.
    epoch = math.floor(step / steps_per_epoch + 1e-9)
    return float(epoch if optim.update == "epoch" else max(epoch - 1, 0))


def _lr_factor(optim: OptimSection, global_batch: int) -> float:
    if optim.lr_base_batch is None:
        return 1.0
    images = global_batch * (optim.accumulate if optim.lr_counts_accumulate else 1)
    ratio = images / optim.lr_base_batch
    return math.sqrt(ratio) if optim.lr_scaling == "sqrt" else ratio


def ema_weight(optim: OptimSection, step: int) -> float:
    """How much of the average the weights of update `step` (0 is the first) become: 1 - optim.ema, or, with
    `ema_warmup`, (1 + step) ** (-2/3) while that is more: timm's ModelEmaV3 with use_warmup. 0 without an average.
    """
    if optim.ema is None:
        return 0.0
    lowest = 1.0 - optim.ema
    return max(lowest, (1.0 + step) ** -EMA_WARMUP_POWER) if optim.ema_warmup else lowest


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentValues:
    """What augmentation and attack use in one epoch."""

    magnitude: float | None  # RandAugment's M; None: as the randaug string says
    mixup: float
    cutmix: float
    mix_prob: float
    switch_prob: float
    eps_scale: float  # multiplies the training attack's eps and step_size
    steps: int  # of the training attack; 0: none


def warmup_at(objective: ObjectiveSection, epoch: int) -> AugmentValues:
    """The objective's own numbers, replaced by those of its warm-up at `epoch` (0 is the first)."""
    attack = objective.attack
    values = AugmentValues(
        magnitude=None,
        mixup=objective.mixup,
        cutmix=objective.cutmix,
        mix_prob=objective.mix_prob,
        switch_prob=objective.switch_prob,
        eps_scale=1.0,
        steps=attack.steps if attack else 0,
    )
    warmup = objective.warmup
    if warmup is None:
        return values

    def at(points: tuple[tuple[int, float], ...] | None, otherwise: float) -> float:
        return (
            otherwise if points is None else value_at(points, epoch, linear=warmup.interpolation == "linear")
        )

    eps = attack.eps if attack else 1.0
    return AugmentValues(
        magnitude=None if warmup.magnitude is None else at(warmup.magnitude, 0.0),
        mixup=values.mixup,
        cutmix=at(warmup.cutmix, values.cutmix),
        mix_prob=at(warmup.mix_prob, values.mix_prob),
        switch_prob=at(warmup.switch_prob, values.switch_prob),
        eps_scale=at(warmup.eps, eps) / eps,
        steps=math.floor(at(warmup.steps, values.steps) + 0.5),  # half steps up, where a line leads there
    )


def value_at(points: tuple[tuple[int, float], ...], epoch: int, *, linear: bool = False) -> float:
    """The last value at or before `epoch`, or on the line to the next point; constant after the last."""
    last = max(index for index, (start, _) in enumerate(points) if start <= epoch)
    start, value = points[last]
    if not linear or last + 1 == len(points):
        return float(value)
    end, goal = points[last + 1]
    return value + (goal - value) * (epoch - start) / (end - start)
