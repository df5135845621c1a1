"""Which function makes which kind."""

from collections.abc import Callable
from importlib import import_module
from typing import Final

from torch import Tensor

# (levels (N,3,H,W) float32 with whole numbers 0..255, seed int64 [N], severity) -> levels, not yet rounded or clamped.
Corruption = Callable[..., Tensor]

_HOMES: Final = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("gaussian_blur", "defocus_blur", "zoom_blur"),
    "glass": ("glass_blur",),
    "motion": ("motion_blur",),
    "snow": ("snow",),
    "frost": ("frost",),
    "fog": ("fog",),
    "spatter": ("spatter",),
    "colour": ("brightness", "contrast", "saturate"),
    "elastic": ("elastic_transform",),
    "pixelate": ("pixelate",),
    "jpeg": ("jpeg_compression",),
    "waves": ("single_frequency_greyscale", "cocentric_sine_waves", "plasma_noise"),
    "sparkle": ("sparkles", "inverse_sparkles"),
    "spectrum": ("blue_noise_sample", "brownish_noise"),
    "perlin": ("perlin_noise",),
    "cutout": ("checkerboard_cutout",),
    "caustic": ("caustic_refraction",),
}
_HOME_OF: Final = {kind: home for home, kinds in _HOMES.items() for kind in kinds}


def find(kind: str) -> Corruption:
    """The function of that name, imported when asked for."""
    found: Corruption = getattr(import_module(f"robust.corruptions.{_HOME_OF[kind]}"), kind)
    return found
