"""ImageNet-C in one number, or several: mean error, mCE, relative mCE, by group and by severity.

Papers print two numbers under one name. The mean error is not normalised: errors averaged over severities, then over
the 15 corruptions. mCE divides each corruption's errors by AlexNet's first (Hendrycks and Dietterich 2019,
arXiv:1903.12261). Both are in per cent, lower is better, and they never compare with each other.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypedDict

Errors = Mapping[str, Sequence[float]]
"""Corruption -> errors (1 - top-1) at severities 1 to 5."""

NUM_SEVERITIES: Final = 5
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS: Final = tuple(name for group in GROUPS.values() for name in group)
EXTRA: Final = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # in no headline number
# AlexNet's errors as hendrycks/robustness publishes them (ImageNet-C/test.py's table, by severity).
ALEXNET: Final[dict[str, tuple[float, ...]]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
ALEXNET_CLEAN: Final = 1 - 0.56522  # torchvision's alexnet, acc@1 of its weights IMAGENET1K_V1


class CorruptionResult(TypedDict):
    """All of it in per cent; `relative_mce` where the clean error is known."""

    mean_error: float
    mce: float
    relative_mce: float | None
    corruption_errors: dict[str, float]  # CE, over AlexNet's
    errors: dict[str, float]  # mean over severities
    groups: dict[str, float]  # mean error of each group's corruptions
    severities: list[float]  # mean error over the 15 corruptions at 1 to 5


def corruption_result(errors: Errors, clean_error: float | None = None) -> CorruptionResult:
    """ValueError unless there are 15 corruptions with 5 errors each; the extra four are left out."""
    whole = check_errors(errors)
    means = {name: _mean(row) for name, row in whole.items()}
    relative = None if clean_error is None else relative_mce(whole, clean_error)
    return CorruptionResult(
        mean_error=100 * _mean(list(means.values())),
        mce=mean_corruption_error(whole),
        relative_mce=relative,
        corruption_errors={name: corruption_error(name, row) for name, row in whole.items()},
        errors={name: 100 * value for name, value in means.items()},
        groups={group: 100 * _mean([means[name] for name in names]) for group, names in GROUPS.items()},
        severities=[100 * _mean([row[s] for row in whole.values()]) for s in range(NUM_SEVERITIES)],
    )


def check_errors(errors: Errors) -> dict[str, tuple[float, ...]]:
    """The 15 corruptions in the usual order."""
    if missing := [name for name in CORRUPTIONS if name not in errors]:
        raise ValueError(
            f"{', '.join(missing)} missing: a mean over other corruptions is another number; judge all 15"
        )
    if strange := sorted(set(errors) - {*CORRUPTIONS, *EXTRA}):
        raise ValueError(f"{', '.join(strange)}: no corruption of ImageNet-C; leave it out")
    return {name: _five(name, errors[name]) for name in CORRUPTIONS}


def _five(name: str, row: Sequence[float]) -> tuple[float, ...]:
    if len(row) != NUM_SEVERITIES:
        raise ValueError(f"{name} has {len(row)} errors; give those of severities 1 to {NUM_SEVERITIES}")
    if wrong := [value for value in row if not 0 <= value <= 1]:
        raise ValueError(f"{name} has an error of {wrong[0]}; give shares from 0 to 1, not per cent")
    return tuple(row)


def corruption_error(name: str, row: Sequence[float]) -> float:
    """CE of one corruption: its errors summed over severities, over AlexNet's; 100 is AlexNet."""
    return 100 * sum(_five(name, row)) / sum(ALEXNET[name])


def mean_corruption_error(errors: Errors) -> float:
    """mCE: the mean of the 15 CE. An error of 1 everywhere is 129.345, AlexNet itself 100."""
    return _mean([corruption_error(name, row) for name, row in check_errors(errors).items()])


def relative_mce(errors: Errors, clean_error: float) -> float:
    """Relative mCE: the same of what a corruption adds to the clean error; says how errors grow, not how many."""
    added = [sum(row) - NUM_SEVERITIES * clean_error for row in check_errors(errors).values()]
    by_alexnet = [sum(ALEXNET[name]) - NUM_SEVERITIES * ALEXNET_CLEAN for name in CORRUPTIONS]
    return 100 * _mean([own / other for own, other in zip(added, by_alexnet, strict=True)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
