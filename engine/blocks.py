"""How the images of an attack are divided: into blocks that one process attacks at a time, and into parts.

Blocks are a function of the evaluation alone, not of who is there to do them: an image meets lanes of one shape.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.index import DatasetIndex
from data.order import hash64

_IMAGES_OF_A_LANE = 8  # in a block at most: the more, the fewer lanes stand empty at its end
_FEWEST_BLOCKS = 4  # of an evaluation, for that many processes
Keys = NDArray[np.int64]


class Part(NamedTuple):
    """One of `total` parts of an evaluation, from 1; they have all blocks between them."""

    number: int = 1
    total: int = 1

    def has(self, block: int, rank: int, world_size: int) -> bool:
        """Whether the process takes that block, of all parts' processes."""
        return block % (self.total * world_size) == (self.number - 1) * world_size + rank

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


WHOLE = Part()


def parse_part(text: str) -> Part:
    """K/N, 1 <= K <= N. ValueError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(int(match[1]), int(match[2])) if match else Part(0, 0)
    if not 1 <= part.number <= part.total:
        raise ValueError(
            f"--part is {text!r}, but must be K/N with K from 1 to N, such as 1/4 for the first of four"
        )
    return part


def block_size(num_images: int, lanes: int) -> int:
    """Images of a block."""
    return lanes * max(1, min(_IMAGES_OF_A_LANE, num_images // (_FEWEST_BLOCKS * lanes)))


def blocks_of(keys: Keys, size: int) -> list[Keys]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def in_random_order(index: DatasetIndex, keys: Keys) -> Keys:
    """`keys` by a hash of the images' names: the same pseudo-random order for every model and machine."""
    drawn = np.array(
        [hash64("order of an attack", index.name(key)) for key in keys.tolist()], dtype=np.uint64
    )
    return keys[np.argsort(drawn, kind="stable")]
