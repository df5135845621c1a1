"""Training from tars without an index, read in order as they arrive: for shards of others that are only looked at.

What is given up against an index: a sample has no number, so the order is that of the shards (which are
permuted each epoch) and depends on ranks and workers; an epoch is a number of steps that the caller names;
continuing within an epoch reads its first samples again; and an evaluation is refused, because nobody knows
whether each sample came once. What is kept: every header, member and end of a tar is checked, and a cut raises.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data.augment import with_augment
from data.batch import Batch
from data.decode import Picture
from data.draws import MixSettings, draw_train
from data.loader import check_epochs, check_layout, check_pairs
from data.order import Cursor, advance, hash64, sample_seed
from data.read import BadSample
from data.remote import Retry, shown
from data.samples import Sample, expand_urls, read_samples
from data.transform import AugmentSettings, train_transform
from data.workers import start_worker, worker_context


def stream_loader(
    urls: Sequence[str],
    *,
    num_classes: int,
    steps_per_epoch: int,
    seed: int,
    global_batch: int,
    rank: int,
    world_size: int,
    start: Cursor,
    num_epochs: int,
    image_size: int,
    transform_of_epoch: Sequence[AugmentSettings],
    mix_of_epoch: Sequence[MixSettings],
    num_workers: int,
    retry: Retry | None = None,
    allow_pipes: bool = False,
) -> Iterator[tuple[Cursor, Batch]]:
    """`steps_per_epoch` batches per epoch on every rank, and the cursor after each.

    Shards are dealt to ranks and workers anew each epoch; who runs out of them starts its own again. `key` of a
    batch is the position in the epoch, since there is none in the data set. ValueError for settings that cannot
    work, at the call; ValueError, BadSample or RemoteError naming the shard while iterating.
    """
    check_layout(
        global_batch, rank=rank, world_size=world_size, image_size=image_size, num_workers=num_workers
    )
    check_epochs(transform_of_epoch, mix_of_epoch, num_epochs)
    if any(mix.is_on for mix in mix_of_epoch[start.epoch : num_epochs]):
        check_pairs(global_batch // world_size, start)
    shards = expand_urls(urls, allow_pipes=allow_pipes)
    _check_stream(shards, steps_per_epoch, start, global_batch=global_batch, world_size=world_size)
    batches = StreamBatches(
        shards=shards,
        retry=retry or Retry(),
        num_classes=num_classes,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
        start=start,
        image_size=image_size,
        transform_of_epoch=tuple(transform_of_epoch),
        mix_of_epoch=tuple(mix_of_epoch),
    )
    return _iterate(batches, min(num_workers, len(shards) // world_size))


@dataclass(frozen=True, kw_only=True)
class StreamBatches(IterableDataset[Batch | Exception]):
    """What one worker of one rank reads: every W-th batch, from its own shards."""

    shards: tuple[str, ...]
    retry: Retry
    num_classes: int
    steps_per_epoch: int
    seed: int
    global_batch: int
    rank: int
    world_size: int
    start: Cursor
    image_size: int
    transform_of_epoch: tuple[AugmentSettings, ...]
    mix_of_epoch: tuple[MixSettings, ...]

    def __iter__(self) -> Iterator[Batch | Exception]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            number = 0
            for epoch in range(self.start.epoch, len(self.transform_of_epoch)):
                samples = self._samples(epoch, worker, num_workers)
                for step in range(self._first_step(epoch), self.steps_per_epoch):
                    if number % num_workers == worker:
                        yield self._make(samples, Cursor(epoch, step * self.global_batch))
                    number += 1
        except (ValueError, OSError) as error:  # returned: torch would wrap it in the worker's traceback
            yield error

    def cursors(self) -> Iterator[Cursor]:
        """Where the run stands after each batch."""
        size = self.steps_per_epoch * self.global_batch
        for epoch in range(self.start.epoch, len(self.transform_of_epoch)):
            for step in range(self._first_step(epoch), self.steps_per_epoch):
                cursor = Cursor(epoch, step * self.global_batch)
                yield advance(cursor, size, global_batch=self.global_batch)

    def _first_step(self, epoch: int) -> int:
        return self.start.consumed // self.global_batch if epoch == self.start.epoch else 0

    def _samples(self, epoch: int, worker: int, num_workers: int) -> Iterator[Sample]:
        """Without end: all samples of this worker's shards, again and again."""
        order = np.argsort(hash64(self.seed, "shards", epoch, np.arange(len(self.shards))), kind="stable")
        own = order[self.rank :: self.world_size][worker::num_workers]
        while True:
            is_empty = True
            for shard in own.tolist():
                for sample in read_samples(self.shards[shard], self.retry):
                    is_empty = False
                    yield self._in_range(sample)
            if is_empty:
                raise ValueError(f"shard {shown(self.shards[own[0]])} holds no samples; leave it out")

    def _in_range(self, sample: Sample) -> Sample:
        if sample.label >= self.num_classes:
            raise ValueError(
                f"shard {sample.shard}, key {sample.name!r}: label {sample.label} is outside "
                f"0..{self.num_classes - 1}"
            )
        return sample

    def _make(self, samples: Iterator[Sample], cursor: Cursor) -> Batch:
        local = self.global_batch // self.world_size
        positions = cursor.consumed + self.rank * local + np.arange(local, dtype=np.int64)
        seeds = sample_seed(positions, seed=self.seed, epoch=cursor.epoch)
        draws = draw_train(
            positions,
            self.mix_of_epoch[cursor.epoch],
            seed=self.seed,
            epoch=cursor.epoch,
            batch_start=cursor.consumed,
            image_size=self.image_size,
        )
        settings = self.transform_of_epoch[cursor.epoch]
        draws = with_augment(draws, seeds, settings, image_size=self.image_size)
        images = np.empty((local, 3, self.image_size, self.image_size), np.uint8)
        labels = np.empty(local, np.int64)
        for slot in range(local):
            sample = next(samples)
            labels[slot] = sample.label
            try:
                images[slot] = train_transform(
                    Picture(sample.image, apply_exif=settings.apply_exif),
                    settings,
                    sample_seed=int(seeds[slot]),
                    image_size=self.image_size,
                )
            except ValueError as error:
                raise BadSample(str(error), shard=sample.shard, key=sample.name) from None
        return Batch(
            image=torch.from_numpy(images),
            label=torch.from_numpy(labels),
            mask=torch.ones(local, dtype=torch.bool),
            key=torch.from_numpy(positions),
            seed=torch.from_numpy(seeds),
            draw=torch.from_numpy(draws),
        )


def _iterate(batches: StreamBatches, num_workers: int) -> Iterator[tuple[Cursor, Batch]]:
    loader: DataLoader[Batch | Exception] = DataLoader(
        batches,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=num_workers,
        multiprocessing_context=worker_context() if num_workers else None,
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),
    )
    for cursor, result in zip(batches.cursors(), loader, strict=True):
        if isinstance(result, Exception):
            raise result
        yield cursor, result


def _as_is(batch: Any) -> Any:
    return batch


def _check_stream(
    shards: tuple[str, ...], steps_per_epoch: int, start: Cursor, *, global_batch: int, world_size: int
) -> None:
    if steps_per_epoch < 1:
        raise ValueError(f"{steps_per_epoch} steps per epoch must be at least 1")
    if len(shards) < world_size:
        raise ValueError(
            f"{len(shards)} shards cannot be dealt to {world_size} processes; use fewer processes, or an index"
        )
    if start.consumed % global_batch or not 0 <= start.consumed <= steps_per_epoch * global_batch:
        raise ValueError(
            f"{start} is no step of {steps_per_epoch} steps with a global batch of {global_batch}"
        )
