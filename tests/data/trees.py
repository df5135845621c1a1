"""Image folders and tars for tests."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data.tar import Writer


def encode(seed: int, kind: str = "JPEG", *, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> bytes:
    """An image of noise; `size` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write_images(folder: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (20, 16)) -> Path:
    """`folder/CLASS/NN.jpg`, as many as `counts` says of each class."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for image in range(count):
            (folder / name / f"{image:02d}.jpg").write_bytes(encode(1000 * number + image, size=size))
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with path.open("wb") as file:
        writer = Writer(file)
        for name, content in members.items():
            writer.add(name, content)
        writer.close()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
