"""What a loader's worker does: a cursor, or a row of keys, to one process's share of a global batch.

Pure functions of their fields and the task, so a batch can be made by any worker, or made again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.augment import with_augment
from data.bad import BadSample, DataLimit, stand_ins
from data.decode import Picture
from data.draws import MixSettings, draw_eval, draw_train
from data.index import DatasetIndex
from data.order import Cursor, sample_seed
from data.read import ShardReader
from data.repeat import SharedPictures
from data.slots import Arrays, BatchShape
from data.transform import AugmentSettings, EvalTransform, crop_numbers, train_transform
from data.window import SampleOrder


class _Sample(NamedTuple):
    """How an image becomes a sample, and where it is written."""

    settings: AugmentSettings
    seed: int
    numbers: list[float]  # see `crop_numbers`
    into: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class TrainBatches:
    """Cursor -> this rank's batch."""

    reader: ShardReader
    order: SampleOrder
    seed: int
    rank: int
    local_batch: int
    image_size: int
    transform_of_epoch: tuple[AugmentSettings, ...]
    mix_of_epoch: tuple[MixSettings, ...]
    replaces_bad: bool = False

    @property
    def shape(self) -> BatchShape:
        one = np.zeros(1, np.int64)
        draws = with_augment(draw_eval(1), one, self.transform_of_epoch[-1], image_size=self.image_size)
        return BatchShape(self.local_batch, self.image_size, draws.shape[1])

    def fill(self, task: Cursor, into: Arrays, at: Callable[[int], None]) -> list[BadSample]:
        """See `data.pool.Job`. Returns the samples that others stand in for; without `replaces_bad` the first of
        them is raised.
        """
        epoch, consumed = task
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
        into.draw[:] = with_augment(draws, seeds, settings, image_size=self.image_size)
        bad: list[BadSample] = []
        pictures = SharedPictures(keys.tolist(), self.reader.read, apply_exif=settings.apply_exif)
        crops = crop_numbers(seeds).tolist()
        for slot, key in enumerate(keys.tolist()):
            at(key)
            sample = _Sample(settings, int(seeds[slot]), crops[slot], into.image[slot])
            try:
                self._load(key, sample, pictures)
            except BadSample as error:
                if not self.replaces_bad:
                    raise
                bad.append(error)
                keys[slot] = self._stand_in(Cursor(epoch, int(positions[slot])), sample, bad, at)
        _label(self.reader.index, into, keys, seeds)
        return bad

    def _stand_in(
        self, place: Cursor, sample: _Sample, bad: list[BadSample], at: Callable[[int], None]
    ) -> int:
        """The first key of `stand_ins` that can be used, whose image is written; bad ones on the way are noted."""
        for position in stand_ins(place.consumed, self.reader.index.num_samples):
            key = int(self.order.keys(np.array([position]), epoch=place.epoch)[0])
            at(key)
            try:
                pictures = SharedPictures([key], self.reader.read, apply_exif=sample.settings.apply_exif)
                self._load(key, sample, pictures)
                return key
            except BadSample as error:
                bad.append(error)
        raise DataLimit(
            f"{bad[-1]}; {len(bad)} samples in a row are bad, so this is no matter of single images"
        )

    def _load(self, key: int, sample: _Sample, pictures: SharedPictures) -> None:
        try:
            train_transform(
                pictures.take(key),
                sample.settings,
                sample_seed=sample.seed,
                image_size=self.image_size,
                numbers=sample.numbers,
                into=sample.into,
            )
        except BadSample:
            raise
        except ValueError as error:
            raise self.reader.bad_sample(key, str(error)) from None


@dataclass(frozen=True, kw_only=True)
class EvalBatches:
    """Keys of this rank's slots (int64, -1 for padding) -> batch."""

    reader: ShardReader
    seed: int
    local_batch: int
    image_size: int
    resize: EvalTransform
    allows_bad: bool = False

    @property
    def shape(self) -> BatchShape:
        return BatchShape(self.local_batch, self.image_size, draw_eval(1).shape[1])

    def fill(self, task: NDArray[np.int64], into: Arrays, at: Callable[[int], None]) -> list[BadSample]:
        """See `data.pool.Job`. With `allows_bad` a bad sample keeps its slot, label and mask, has a black image and
        is returned; else it is raised.
        """
        bad: list[BadSample] = []
        for slot, key in enumerate(task.tolist()):
            if key < 0:
                into.image[slot] = 0
            else:
                self._try(key, bad, at, into.image[slot])
        into.draw[:] = draw_eval(len(task))
        seeds = np.where(task >= 0, sample_seed(task, seed=self.seed, epoch=0), 0)
        _label(self.reader.index, into, task, seeds)
        return bad

    def _try(
        self, key: int, bad: list[BadSample], at: Callable[[int], None], into: NDArray[np.uint8]
    ) -> None:
        at(key)
        try:
            self._load(key, into)
        except BadSample as error:
            if not self.allows_bad:
                raise
            bad.append(error)
            into[:] = 0

    def _load(self, key: int, into: NDArray[np.uint8]) -> None:
        content = self.reader.read(key)
        try:
            picture = Picture(content, apply_exif=self.resize.apply_exif)
            self.resize.apply(picture, image_size=self.image_size, into=into)
        except ValueError as error:
            raise self.reader.bad_sample(key, str(error)) from None


def _label(index: DatasetIndex, into: Arrays, keys: NDArray[np.int64], seeds: NDArray[np.int64]) -> None:
    into.label[:] = [index.label(key) if key >= 0 else -1 for key in keys.tolist()]
    into.mask[:] = keys >= 0
    into.key[:] = keys
    into.seed[:] = seeds
