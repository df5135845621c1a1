"""What a loader's worker does: a cursor, or a row of keys, to one process's share of a global batch.

Pure functions of their fields and the job, so a batch can be made by any worker, or made again. Errors that a
user must see are returned, not raised: torch would wrap a raised one in the worker's whole traceback.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.augment import with_augment
from data.batch import Batch
from data.decode import Picture
from data.draws import MixSettings, draw_eval, draw_train
from data.index import DatasetIndex
from data.order import Cursor, sample_seed
from data.read import BadSample, ShardReader
from data.repeat import SharedPictures
from data.transform import AugmentSettings, EvalTransform, train_transform
from data.window import SampleOrder


@dataclass(frozen=True, kw_only=True)
class TrainBatches(Dataset[Batch | Exception]):
    """Cursor -> this rank's batch."""

    reader: ShardReader
    order: SampleOrder
    seed: int
    rank: int
    local_batch: int
    image_size: int
    transform_of_epoch: tuple[AugmentSettings, ...]
    mix_of_epoch: tuple[MixSettings, ...]

    def __getitem__(self, cursor: Cursor) -> Batch | Exception:
        try:
            return self._make(cursor)
        except (ValueError, OSError) as error:
            return error

    def _make(self, cursor: Cursor) -> Batch:
        epoch, consumed = cursor
        first = consumed + self.rank * self.local_batch
        positions = np.arange(first, first + self.local_batch, dtype=np.int64)
        keys = self.order.keys(positions, epoch=epoch)
        seeds = sample_seed(positions, seed=self.seed, epoch=epoch)
        draws = draw_train(
            positions,
            self.mix_of_epoch[epoch],
            seed=self.seed,
            epoch=epoch,
            batch_start=consumed,
            image_size=self.image_size,
        )
        settings = self.transform_of_epoch[epoch]
        draws = with_augment(draws, seeds, settings, image_size=self.image_size)
        images = np.empty((self.local_batch, 3, self.image_size, self.image_size), np.uint8)
        pictures = SharedPictures(keys.tolist(), self.reader.read, apply_exif=settings.apply_exif)
        for slot, key in enumerate(keys.tolist()):
            images[slot] = self._load(key, settings, int(seeds[slot]), pictures)
        return _batch(self.reader.index, images, keys, seeds, draws)

    def _load(
        self, key: int, settings: AugmentSettings, seed: int, pictures: SharedPictures
    ) -> NDArray[np.uint8]:
        try:
            return train_transform(pictures.take(key), settings, sample_seed=seed, image_size=self.image_size)
        except BadSample:
            raise
        except ValueError as error:
            raise self.reader.bad_sample(key, str(error)) from None


@dataclass(frozen=True, kw_only=True)
class EvalBatches(Dataset[Batch | Exception]):
    """Keys of this rank's slots (int64, -1 for padding) -> batch."""

    reader: ShardReader
    seed: int
    image_size: int
    resize: EvalTransform

    def __getitem__(self, keys: NDArray[np.int64]) -> Batch | Exception:
        try:
            return self._make(keys)
        except (ValueError, OSError) as error:
            return error

    def _make(self, keys: NDArray[np.int64]) -> Batch:
        images = np.zeros((len(keys), 3, self.image_size, self.image_size), np.uint8)
        for slot, key in enumerate(keys.tolist()):
            if key >= 0:
                images[slot] = self._load(key)
        seeds = np.where(keys >= 0, sample_seed(keys, seed=self.seed, epoch=0), 0)
        return _batch(self.reader.index, images, keys, seeds, draw_eval(len(keys)))

    def _load(self, key: int) -> NDArray[np.uint8]:
        content = self.reader.read(key)
        try:
            picture = Picture(content, apply_exif=self.resize.apply_exif)
            return self.resize.apply(picture, image_size=self.image_size)
        except ValueError as error:
            raise self.reader.bad_sample(key, str(error)) from None


def _batch(
    index: DatasetIndex,
    images: NDArray[np.uint8],
    keys: NDArray[np.int64],
    seeds: NDArray[np.int64],
    draws: NDArray[np.float32],
) -> Batch:
    labels = [index.label(key) if key >= 0 else -1 for key in keys.tolist()]
    return Batch(
        image=torch.from_numpy(images),
        label=torch.tensor(labels, dtype=torch.int64),
        mask=torch.from_numpy(keys >= 0),
        key=torch.from_numpy(keys.copy()),
        seed=torch.from_numpy(seeds),
        draw=torch.from_numpy(draws),
    )
