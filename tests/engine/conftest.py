"""A data set small enough for runs that are started many times."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards with 70 of the training digits, 7 of each class, 32 px, in 3 shards."""
    from data.shards import make

    folder = tmp_path_factory.mktemp("few_digits")
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
        for image in sorted((digits / "images/train" / str(label)).iterdir())[:7]:
            shutil.copy(image, folder / "images" / str(label))
    make(folder / "images", folder / "train", split="train", samples_per_shard=30)
    return folder / "train"
