"""The small random numbers of a training step (mixup and cutmix in timm's batch mode), made on the host.

A draw belongs to a *group* of samples: the whole global batch as in timm, or `group` consecutive samples,
which gives more varied batches. It is a pure function of (seed, epoch, group), so every rank computes the
same one by itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from data.batch import BOX_X0, BOX_X1, BOX_Y0, BOX_Y1, CUTMIX, LAM, MIX_ON, NUM_DRAWS, START
from data.order import hash64, uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class MixSettings:
    """Mixup (Zhang et al. 2018, 1710.09412) and cutmix (Yun et al. 2019, 1905.04899); both alphas 0 means
    neither.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0  # chance that a group is mixed
    switch_prob: float = 0.5  # chance of cutmix when both alphas are above 0
    group: int | None = None  # consecutive samples that share a draw; None: the whole global batch
    one_start: bool = False  # START is one number for the whole global batch, not one for each sample

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)} must be 0 (off) or positive")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a probability; give a number from 0 to 1"
                )
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise ValueError(
                f"mix group {self.group} must be even, samples are mixed in pairs; try {self.group + 1}"
            )

    @property
    def is_on(self) -> bool:
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def draw_train(
    positions: NDArray[np.int64],
    settings: MixSettings,
    *,
    seed: int,
    epoch: int,
    batch_start: int,
    image_size: int,
) -> NDArray[np.float32]:
    """Draws of the samples at `positions` (int64 [N], counted along the epoch) as float32 [N,NUM_DRAWS].

    `batch_start` is the position of the global batch's first sample; it names the group when `settings.group`
    is None.
    """
    group = np.full_like(positions, batch_start) if settings.group is None else positions // settings.group
    groups, row_of = np.unique(group, return_inverse=True)
    rows = _draw_groups(groups, settings, seed=seed, epoch=epoch, image_size=image_size)[row_of]
    places = np.full_like(positions, batch_start) if settings.one_start else positions
    rows[:, START] = _uniform24(hash64(seed, "start", epoch, places))
    return rows


def draw_eval(num_samples: int) -> NDArray[np.float32]:
    """Draws that mix nothing, float32 [num_samples,NUM_DRAWS]."""
    rows = np.zeros((num_samples, NUM_DRAWS), np.float32)
    rows[:, LAM] = 1
    return rows


def _draw_groups(
    groups: NDArray[np.int64], settings: MixSettings, *, seed: int, epoch: int, image_size: int
) -> NDArray[np.float32]:
    def number(purpose: str) -> NDArray[np.float64]:
        return uniform(hash64(seed, purpose, epoch, groups))

    rows = draw_eval(len(groups))
    if not settings.is_on:
        return rows
    is_mixed = number("mix") < settings.prob
    is_cutmix = is_mixed & _choose_cutmix(number("switch"), settings)
    alpha = np.where(is_cutmix, settings.cutmix_alpha, settings.mixup_alpha)
    # Quantile function of one uniform: a rejection sampler would need an unknown count of draws. The alpha of
    # a group that is not mixed may be 0, where the function has no value.
    lam = betaincinv(np.where(is_mixed, alpha, 1.0), np.where(is_mixed, alpha, 1.0), number("lam"))
    box = _boxes(lam, number("box_y"), number("box_x"), size=image_size)
    covered = (box[1] - box[0]) * (box[3] - box[2]) / image_size**2
    rows[:, LAM] = np.where(is_mixed, np.where(is_cutmix, 1 - covered, lam), 1)
    rows[:, MIX_ON], rows[:, CUTMIX] = is_mixed, is_cutmix
    for column, edge in zip((BOX_Y0, BOX_Y1, BOX_X0, BOX_X1), box, strict=True):
        rows[:, column] = np.where(is_cutmix, edge, 0)
    return rows


def _choose_cutmix(number: NDArray[np.float64], settings: MixSettings) -> NDArray[np.bool_]:
    if settings.mixup_alpha > 0 and settings.cutmix_alpha > 0:
        return number < settings.switch_prob
    return np.full(number.shape, settings.cutmix_alpha > 0)


def _boxes(
    lam: NDArray[np.float64], centre_y: NDArray[np.float64], centre_x: NDArray[np.float64], *, size: int
) -> tuple[NDArray[np.int64], ...]:
    """(y0, y1, x0, x1) as in timm: side int(size * sqrt(1 - lam)), halved by integer division, clipped to the
    image.
    """
    half = (size * np.sqrt(1 - lam)).astype(np.int64) // 2
    y, x = (size * centre_y).astype(np.int64), (size * centre_x).astype(np.int64)
    return tuple(np.clip(edge, 0, size) for edge in (y - half, y + half, x - half, x + half))


def _uniform24(hashed: NDArray[np.uint64]) -> NDArray[np.float32]:
    """[0, 1) with float32's 24 bits: a longer number could round up to 1."""
    return (hashed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
