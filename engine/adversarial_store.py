"""Attacked images on disk: a safetensors file for each block, written image by image as they are broken.

float32, as the model saw them: rounded to 8 or 16 bits an image is another one, and may be classified otherwise.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from bits.checkpoint import write_atomic

NAME = "adversarial"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialStore:
    """The files of one evaluation: `folder`/block-00000.safetensors and so on."""

    folder: Path
    evaluation: str

    def has(self, block: int, names: Sequence[str]) -> bool:
        """Whether the block's file is there and about these images."""
        return _metadata(self._path(block)) == self._facts(names)

    def is_there(self, block: int) -> bool:
        """Whether the block has a file of this evaluation."""
        metadata = _metadata(self._path(block))
        return metadata is not None and metadata.get("evaluation") == self.evaluation

    def begin(self, block: int, names: Sequence[str], image: NDArray[np.float32]) -> None:
        """A file with the images (M,3,H,W) as they are, for want of anything that breaks them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(block), save({NAME: np.ascontiguousarray(image)}, self._facts(names)))

    def put(self, block: int, rows: Sequence[int], image: NDArray[np.float32]) -> None:
        """What broke the images at `rows` of the block, in place: a kill leaves whole files."""
        path = self._path(block)
        header, start = _header(path)
        shape = tuple(header[NAME]["shape"])  # type: ignore[index]
        stored = np.memmap(path, dtype=np.float32, mode="r+", offset=start, shape=shape)
        stored[list(rows)] = image
        stored.flush()

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:05d}.safetensors"

    def _facts(self, names: Sequence[str]) -> dict[str, str]:
        return {"evaluation": self.evaluation, "names": json.dumps(list(names))}


def stored_names(path: Path) -> list[str]:
    """Of the images in a block's file; ValueError for another file."""
    metadata = _metadata(path)
    if metadata is None or "names" not in metadata:
        raise ValueError(
            f"{path} is no file of attacked images; was it torn? attack again with --save-images"
        )
    return list(json.loads(metadata["names"]))


def stored_evaluation(path: Path) -> str:
    """The id of the evaluation that a block's file belongs to; empty where it names none."""
    return (_metadata(path) or {}).get("evaluation", "")


def _metadata(path: Path) -> Mapping[str, str] | None:
    try:
        header, _ = _header(path)
        return header.get("__metadata__")  # type: ignore[return-value]
    except (OSError, ValueError, OverflowError, MemoryError, struct.error):
        return None


def _header(path: Path) -> tuple[dict[str, object], int]:
    """The JSON in front of a safetensors file, and where the tensors begin."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, object] = json.loads(file.read(length))
    return header, 8 + length
