"""Severity tables of ImageNet-C (Hendrycks and Dietterich 2019; values of the authors' code, 224 px, not CIFAR-C's).

Lengths are in pixels and stay so at other sizes, as in the code of `imagecorruptions`: a 64 px image is hit harder
than a 224 px one. The exception is elastic_transform, whose lengths are shares of the image's side.
"""

from typing import Final

# Standard deviations, in [0, 1]; shot noise: photons at full brightness; impulse: share of values replaced.
GAUSSIAN_NOISE: Final = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_NOISE: Final = (60, 25, 12, 5, 3)
IMPULSE_NOISE: Final = (0.03, 0.06, 0.09, 0.17, 0.27)
SPECKLE_NOISE: Final = (0.15, 0.2, 0.35, 0.45, 0.6)

GAUSSIAN_BLUR: Final = (1.0, 2.0, 3.0, 4.0, 6.0)  # sigma
DEFOCUS_BLUR: Final = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, sigma of its edge
GLASS_BLUR: Final = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # sigma, reach, passes
MOTION_BLUR: Final = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, sigma
# How many factors from 1 on, as many as NumPy's arange makes of the bounds 1.11, 1.16, 1.21, 1.26 and 1.31, and their
# step.
ZOOM_BLUR: Final = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))

FOG: Final = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # thickness, decay of roughness
FROST: Final = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))  # share of image, of frost
# Mean, deviation, zoom, threshold, blur radius, blur sigma, share of the image that stays as it is.
SNOW: Final = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
# Mean, deviation, sigma, threshold, strength (water) or second sigma (mud), whether it is mud.
SPATTER: Final = (
    (0.65, 0.3, 4.0, 0.69, 0.6, False),
    (0.65, 0.3, 3.0, 0.68, 0.6, False),
    (0.65, 0.3, 2.0, 0.68, 0.5, False),
    (0.65, 0.3, 1.0, 0.65, 1.5, True),
    (0.67, 0.4, 1.0, 0.65, 1.5, True),
)

BRIGHTNESS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST: Final = (0.4, 0.3, 0.2, 0.1, 0.05)
SATURATE: Final = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))  # factor, addend
PIXELATE: Final = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the side
JPEG_COMPRESSION: Final = (25, 18, 15, 10, 7)  # quality
# Strength, sigma, reach of the corners, as shares of 244/224 of the side (244 is a slip in the authors' code).
ELASTIC_TRANSFORM: Final = (
    (2.0, 0.7, 0.1),
    (2.0, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
)

# Severities of ImageNet-C-bar's published set, on the scale 0 to 10 of its code.
C_BAR: Final = {
    "blue_noise_sample": (0.8, 1.6, 2.4, 4.0, 5.6),
    "brownish_noise": (1.0, 2.0, 3.0, 4.0, 5.0),
    "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
    "checkerboard_cutout": (2.0, 3.0, 4.0, 5.0, 6.0),
    "cocentric_sine_waves": (3.0, 5.0, 8.0, 9.0, 10.0),
    "inverse_sparkles": (1.0, 2.0, 4.0, 9.0, 10.0),
    "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
    "plasma_noise": (4.75, 7.0, 8.5, 9.25, 10.0),
    "single_frequency_greyscale": (1.0, 1.5, 2.0, 4.5, 5.0),
    "sparkles": (1.0, 2.0, 3.0, 5.0, 6.0),
}
