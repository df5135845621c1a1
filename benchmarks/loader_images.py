"""JPEGs like ImageNet's for timing loaders: sizes, bytes and spectra are alike, so decoding and resizing cost the same.

Parts of scikit-learn's two photographs under brightness changes and grain that falls off as 1/f; of a mean size of
94 kB, three quarters of them 500x375 or 375x500, one in five without chroma subsampling. Everything is seeded.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

NUM_CLASSES: Final = 20
MEAN_KB: Final = 94
_SIZES: Final = (
    (500, 375),
    (375, 500),
    (500, 333),
    (333, 500),
    (500, 400),
    (640, 480),
    (320, 240),
    (500, 281),
)
_SHARES: Final = (0.62, 0.13, 0.10, 0.03, 0.05, 0.03, 0.02, 0.02)
_GRAIN: Final = 6.8  # levels, standard deviation; sets the mean size
_NUM_FIELDS: Final = 6


def make_tree(folder: Path, *, num_images: int, seed: int = 0) -> float:
    """`folder`/CLASS/NUMBER.jpg; returns the mean size in kB."""
    generator = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    fields = [_grain(generator, 704) for _ in range(_NUM_FIELDS)]
    num_bytes = 0
    for number in range(num_images):
        content = _encode(_picture(generator, photos, fields), generator)
        path = folder / f"class{number % NUM_CLASSES:02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        num_bytes += len(content)
    return num_bytes / num_images / 1000


def _picture(
    generator: np.random.Generator, photos: list[Image.Image], fields: list[NDArray[np.float32]]
) -> NDArray[np.uint8]:
    width, height = _SIZES[generator.choice(len(_SIZES), p=_SHARES)]
    photo = photos[generator.integers(len(photos))]
    scale = min(photo.width / width, photo.height / height) * generator.uniform(0.55, 1.0)
    part = int(width * scale), int(height * scale)
    left, top = (int(generator.integers(a - b + 1)) for a, b in zip(photo.size, part, strict=True))
    box = (left, top, left + part[0], top + part[1])
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC, box=box), np.float32)
    if generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    field = fields[generator.integers(len(fields))]
    row, column = generator.integers(len(field) - height + 1), generator.integers(len(field) - width + 1)
    grain = field[row : row + height, column : column + width] * _GRAIN * generator.lognormal(0.0, 0.5)
    levels = pixels * generator.uniform(0.7, 1.2) + generator.uniform(-20, 20) + grain
    return levels.clip(0, 255).astype(np.uint8)


def _grain(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    """float32 [size,size,3] of standard deviation 1, amplitude 1 / sqrt(frequency); the colours go together mostly."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(4):
        spectrum = np.fft.rfft2(generator.normal(size=(size, size))) / np.sqrt(frequency)
        plane = np.fft.irfft2(spectrum, s=(size, size))
        planes.append(plane / plane.std())
    grain = np.stack([0.9 * planes[0] + 0.44 * plane for plane in planes[1:]], axis=2)
    return np.asarray(grain, np.float32)


def _encode(pixels: NDArray[np.uint8], generator: np.random.Generator) -> bytes:
    file = io.BytesIO()
    subsampling = 0 if generator.random() < 0.2 else 2
    Image.fromarray(pixels).save(
        file, "JPEG", quality=int(generator.integers(88, 97)), subsampling=subsampling
    )
    return file.getvalue()
