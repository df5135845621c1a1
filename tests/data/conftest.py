"""Shards of noise, as an index sees them; `serve` of the tests' conftest puts them behind a URL."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.index import DatasetIndex
from data.shards import make


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """60 noise images of 3 classes in 6 shards of about 130 kB."""
    return make_noise(tmp_path_factory.mktemp("noise"), num_images=60, side=64, per_shard=10)


@pytest.fixture(scope="session")
def dots(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """103 tiny images in 21 shards of 5, the last with 3."""
    return make_noise(tmp_path_factory.mktemp("dots"), num_images=103, side=4, per_shard=5)


def make_noise(root: Path, *, num_images: int, side: int, per_shard: int) -> DatasetIndex:
    random = np.random.default_rng(num_images)
    for number in range(num_images):
        folder = root / "tree" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return make(root / "tree", root / "train", split="train", samples_per_shard=per_shard)
