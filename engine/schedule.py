"""Learning rate and augmentation values as pure functions of recipe and step: nothing to save or restore."""

import math
from dataclasses import dataclass

from engine.fields import ObjectiveSection, OptimSection


def scaled_lr(optim: OptimSection, global_batch: int) -> float:
    """The peak learning rate for `global_batch` images per forward pass.

    lr * B / lr_base_batch (or its square root) with B = global_batch * accumulate, the images of one update.
    """
    return optim.lr * _lr_factor(optim, global_batch)


def scaled_min_lr(optim: OptimSection, global_batch: int) -> float:
    """min_lr, scaled like lr under `scale_all_lr`."""
    return optim.min_lr * (_lr_factor(optim, global_batch) if optim.scale_all_lr else 1.0)


def lr_at(optim: OptimSection, step: int, *, steps_per_epoch: float, epochs: int, global_batch: int) -> float:
    """The learning rate of optimizer update `step` (0 is the first), `steps_per_epoch` updates to an epoch.

    t is the absolute epoch: a fraction where `update` is "step", its floor where it is "epoch" (then equal to
    timm's schedulers with t_in_epochs and warmup_prefix=False, stepped before each epoch). Warm-up is linear
    from warmup_lr; the cosine does not start anew after: min + (lr - min) * (1 + cos(pi * t / epochs)) / 2.
    """
    assert step >= 0, f"step {step}"
    assert steps_per_epoch > 0, f"{steps_per_epoch} steps per epoch"
    # 7 batches to an epoch and accumulate 3 are 7 / 3 updates: 35 / (7 / 3) is just below 15 in floats.
    epoch = math.floor(step / steps_per_epoch + 1e-9)
    t = step / steps_per_epoch if optim.update == "step" else float(epoch)
    peak = scaled_lr(optim, global_batch)
    if t < optim.warmup_epochs:
        start = optim.warmup_lr * (_lr_factor(optim, global_batch) if optim.scale_all_lr else 1.0)
        return start + t * (peak - start) / optim.warmup_epochs
    if optim.schedule == "constant":
        return peak
    if optim.schedule == "step":
        return float(peak * optim.step_gamma ** (epoch // optim.step_epochs))
    lowest = scaled_min_lr(optim, global_batch)
    return lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * t / epochs)) if t < epochs else lowest


def _lr_factor(optim: OptimSection, global_batch: int) -> float:
    if optim.lr_base_batch is None:
        return 1.0
    ratio = global_batch * optim.accumulate / optim.lr_base_batch
    return math.sqrt(ratio) if optim.lr_scaling == "sqrt" else ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentValues:
    """What augmentation and attack use in one epoch."""

    magnitude: float | None  # RandAugment's M; None: as the randaug string says
    mixup: float
    cutmix: float
    mix_prob: float
    switch_prob: float
    eps_scale: float  # multiplies the training attack's eps and step_size


def warmup_at(objective: ObjectiveSection, epoch: int) -> AugmentValues:
    """The objective's own numbers, replaced by those of its warm-up at `epoch` (0 is the first)."""
    values = AugmentValues(
        magnitude=None,
        mixup=objective.mixup,
        cutmix=objective.cutmix,
        mix_prob=objective.mix_prob,
        switch_prob=objective.switch_prob,
        eps_scale=1.0,
    )
    warmup = objective.warmup
    if warmup is None:
        return values

    def at(points: tuple[tuple[int, float], ...] | None, otherwise: float) -> float:
        return (
            otherwise if points is None else _value_at(points, epoch, linear=warmup.interpolation == "linear")
        )

    eps = objective.attack.eps if objective.attack else 1.0
    return AugmentValues(
        magnitude=None if warmup.magnitude is None else at(warmup.magnitude, 0.0),
        mixup=values.mixup,
        cutmix=at(warmup.cutmix, values.cutmix),
        mix_prob=at(warmup.mix_prob, values.mix_prob),
        switch_prob=at(warmup.switch_prob, values.switch_prob),
        eps_scale=at(warmup.eps, eps) / eps,
    )


def _value_at(points: tuple[tuple[int, float], ...], epoch: int, *, linear: bool) -> float:
    """The last value at or before `epoch`, or on the line to the next point; constant after the last."""
    last = max(index for index, (start, _) in enumerate(points) if start <= epoch)
    start, value = points[last]
    if not linear or last + 1 == len(points):
        return float(value)
    end, goal = points[last + 1]
    return value + (goal - value) * (epoch - start) / (end - start)
