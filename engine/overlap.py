"""Which augmentations of a training look like which corruptions: a robustness to what was trained on is another one.

By name and effect, not by a distance of features: RandAugment's contrast, brightness and saturation operations make
what ImageNet-C calls contrast, brightness and saturate (AugMix leaves them out of its training for this reason:
Hendrycks et al. 2020, arXiv:1912.02781).
"""

from collections.abc import Mapping
from typing import Final

from engine.recipe import Recipe

_RANDAUG: Final[Mapping[str, tuple[str, ...]]] = {
    "contrast": ("Contrast", "AutoContrast", "Equalize"),
    "brightness": ("Brightness",),
    "saturate": ("Color",),
    "gaussian_blur": ("Sharpness",),  # below 1 it smooths
    "defocus_blur": ("Sharpness",),
    "color_quant": ("Posterize",),
}
_JITTER: Final = {"brightness": 0, "contrast": 1, "saturate": 2}  # place in data.color_jitter
_NOISE: Final = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "iso_noise")


def overlaps(recipe: Recipe) -> dict[str, list[str]]:
    """Corruption -> augmentations of the recipe's training that look like it; corruptions without one are left out."""
    data, found = recipe.data, dict[str, list[str]]()
    if data.randaug is not None:
        for kind, names in _RANDAUG.items():
            found.setdefault(kind, []).extend(f"RandAugment {name}" for name in names)
    if data.color_jitter is not None:
        for kind, place in _JITTER.items():
            if data.color_jitter[place] > 0:
                found.setdefault(kind, []).append("colour jitter")
    if data.erase_prob > 0 and data.erase_mode == "pixel":
        for kind in _NOISE:
            found.setdefault(kind, []).append("erasing with noise")
    return found
