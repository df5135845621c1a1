"""The kinds of corruption by name, and which sets they belong to. Imports no torch."""

from difflib import get_close_matches
from typing import Final

# Hendrycks and Dietterich 2019, arXiv:1903.12261: the 15 of ImageNet-C in their four groups, and the 4 that were kept
# for validation.
NOISE: Final = ("gaussian_noise", "shot_noise", "impulse_noise")
BLUR: Final = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
WEATHER: Final = ("snow", "frost", "fog", "brightness")
DIGITAL: Final = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
COMMON: Final = (*NOISE, *BLUR, *WEATHER, *DIGITAL)
EXTRA: Final = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# Mintun, Kirillov and Xie 2021, arXiv:2102.11273: the 10 of ImageNet-C-bar, unlike those by design.
C_BAR: Final = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
GROUPS: Final = {
    "noise": NOISE,
    "blur": BLUR,
    "weather": WEATHER,
    "digital": DIGITAL,
    "common": COMMON,
    "extra": EXTRA,
    "c-bar": C_BAR,
    "all": (*COMMON, *EXTRA, *C_BAR),
}
SEVERITIES: Final = (1, 2, 3, 4, 5)


def list_corruptions(group: str = "all") -> tuple[str, ...]:
    """Names of the kinds in a group: noise, blur, weather, digital, common (those 15), extra (4), c-bar (10), all."""
    if group not in GROUPS:
        raise ValueError(f"group {group!r} is none of {', '.join(GROUPS)}")
    return GROUPS[group]


def check_kind(kind: str) -> None:
    """ValueError for a kind that does not exist, with the nearest that does."""
    known = GROUPS["all"]
    if kind not in known:
        near = get_close_matches(str(kind), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"corruption {kind!r} does not exist; the nearest is {near}, robust.list_corruptions() has all"
        )


def check_severity(severity: int) -> None:
    """ValueError for anything but a whole number from 1 to 5."""
    if isinstance(severity, bool) or not isinstance(severity, int) or severity not in SEVERITIES:
        raise ValueError(
            f"severity {severity!r} must be a whole number from 1 to 5; 0 would be the clean image"
        )
