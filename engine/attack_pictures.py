"""What an attack made of the few images that the report shows, kept as they are broken: it is not attacked again.

A file for each image in `ledger/pictures-ID/`; without one the image was not broken.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bits.checkpoint import write_atomic
from data.index import DatasetIndex
from engine.attack_settings import AttackSettings, attack_settings
from engine.blocks import Keys
from engine.eval_fields import AutoAttackEval, SuiteEval
from engine.evaluate import Evaluator
from engine.gallery import choose, is_stored, write_gallery
from engine.rows import CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackPictures:
    """Of one evaluation; all processes write into one folder."""

    folder: Path
    wanted: frozenset[int]  # positions in the data set

    def put(self, position: int, image: NDArray[np.float32]) -> None:
        """`image` (3,H,W): what broke the one at `position`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.save(stream, image)
        write_atomic(self._path(position), stream.getvalue())

    def attacked(self, found: Mapping[str, Tensor]) -> Tensor:
        """float32 (M,3,H,W): the images of `found` (`key` [M], `image` uint8) as the attack has left them."""
        images = found["image"].float() / 255.0
        for row, position in enumerate(found["key"].tolist()):
            if position in self.wanted and self._path(position).exists():
                images[row] = torch.from_numpy(np.load(self._path(position)))
        return images

    def _path(self, position: int) -> Path:
        return self.folder / f"{position}.npy"


def open_pictures(evaluator: Evaluator, settings: AttackSettings) -> AttackPictures:
    """Of the images that the gallery chooses."""
    chosen = shown_keys(evaluator.index, settings, evaluator.num_pictures)
    return AttackPictures(
        folder=evaluator.ledger / f"pictures-{settings.identity}", wanted=frozenset(chosen.tolist())
    )


def store_attack_gallery(evaluator: Evaluator, entry: AutoAttackEval, path: Path, *, num_images: int) -> None:
    """What engine.gallery keeps of other attacks, from what was kept during this one. All ranks take part."""
    env, settings = evaluator.env, attack_settings(evaluator, entry)
    if env.agree(int(is_stored(path, settings.identity))) or num_images == 0:
        return
    keys = shown_keys(evaluator.index, settings, num_images)
    found = evaluator.pictures(SuiteEval(suite=CLEAN, batch_size=settings.lanes), keys)
    if env.rank == 0:
        attacked = open_pictures(evaluator, settings).attacked(found)
        write_gallery(path, evaluator.index, keys, found | {"attacked": attacked}, settings.identity)
    env.barrier()


def shown_keys(index: DatasetIndex, settings: AttackSettings, num_images: int) -> Keys:
    """Of all images, the ones that other evaluations show too; of a sample that may end early, of its first block."""
    keys = settings.keys if settings.until_ci is None else settings.blocks[0]
    return choose(index, keys, num_images)
