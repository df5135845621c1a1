"""Batches in the order of `data.order`, each made whole by one stateless worker.

A job is a cursor: everything in a batch is a function of (index, settings, cursor, rank), so any number of
workers gives the same bits and the only state to save is the cursor that comes with each batch. One
DataLoader serves all epochs, so workers start once and read ahead over the epoch's end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data.batch import Batch
from data.draws import MixSettings
from data.index import DatasetIndex
from data.jobs import EvalBatches, TrainBatches
from data.lookahead import ahead_of, eval_needs, train_needs
from data.order import Cursor, advance, plan_eval, plan_train
from data.read import ShardReader
from data.repeat import RepeatedOrder
from data.store import RemoteShards
from data.transform import AugmentSettings, EvalTransform
from data.window import FullOrder, SampleOrder, WindowOrder
from data.workers import start_worker, worker_context

_PREFETCH = 2  # batches that each worker makes ahead
_SHARDS_AHEAD: Final = 4  # remote shards on their way while an evaluation reads one


def train_loader(
    index: DatasetIndex,
    *,
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
    window: int | None = None,
    repeats: int = 1,
) -> Iterator[tuple[Cursor, Batch]]:
    """This rank's share of every global batch from `start` to the end of epoch `num_epochs - 1`.

    `window`: shards that are shuffled together (see `data.window`); None shuffles all samples of the epoch, which
    needs remote data whole in the cache. `repeats`: copies of each image, see `data.repeat`.

    Yields (cursor after the batch, Batch); storing that cursor and passing it as `start` continues exactly.
    The last batch of an epoch comes with Cursor(epoch + 1, 0). ValueError for settings that cannot work, at
    the call; BadSample while iterating.
    """
    check_layout(
        global_batch, rank=rank, world_size=world_size, image_size=image_size, num_workers=num_workers
    )
    check_epochs(transform_of_epoch, mix_of_epoch, num_epochs)
    plan_train(index.num_samples, global_batch, start, num_epochs)  # refuses what cannot be planned
    if any(mix.is_on for mix in mix_of_epoch[start.epoch : num_epochs]):
        check_pairs(global_batch // world_size, start)
    order = train_order(index, seed=seed, window=window)
    if repeats != 1:
        order = RepeatedOrder(order, repeats=repeats, num_samples=index.num_samples)
    jobs = TrainBatches(
        reader=ShardReader(index),
        order=order,
        seed=seed,
        rank=rank,
        local_batch=global_batch // world_size,
        image_size=image_size,
        transform_of_epoch=tuple(transform_of_epoch),
        mix_of_epoch=tuple(mix_of_epoch),
    )
    plan = _TrainPlan(index.num_samples, global_batch, start, num_epochs)
    size = index.num_samples
    return ahead_of(
        _iterate_train(jobs, plan, num_workers),
        index,
        train_needs(order, start, num_samples=size, num_epochs=num_epochs),
        start=start.epoch * size + start.consumed,
        position_after=lambda item: item[0].epoch * size + item[0].consumed,
        num_ahead=1,
    )


def train_order(index: DatasetIndex, *, seed: int, window: int | None) -> SampleOrder:
    """The order that `train_loader` follows. ValueError for a window that cannot be, or not be cached."""
    counts = [shard.num_samples for shard in index.shards]
    if isinstance(index.store, RemoteShards):
        index.store.check_room(index.shards, len(counts) if window is None else 2 * window)
    return FullOrder(counts, seed=seed) if window is None else WindowOrder(counts, seed=seed, window=window)


def eval_loader(
    index: DatasetIndex,
    *,
    keys: NDArray[np.int64] | None,
    global_batch: int,
    rank: int,
    world_size: int,
    image_size: int,
    resize: EvalTransform,
    num_workers: int,
    seed: int,
) -> Iterator[Batch]:
    """This rank's share of ceil(M / global_batch) batches over M keys (all of them for None), each key once
    over all ranks; slots past the end are masked. ValueError as in `train_loader`.
    """
    check_layout(
        global_batch, rank=rank, world_size=world_size, image_size=image_size, num_workers=num_workers
    )
    chosen = (
        np.arange(index.num_samples, dtype=np.int64) if keys is None else _check_keys(keys, index.num_samples)
    )
    local = global_batch // world_size
    shares = [row[rank * local : (rank + 1) * local] for row in plan_eval(chosen, global_batch)]
    jobs = EvalBatches(reader=ShardReader(index), seed=seed, image_size=image_size, resize=resize)
    ends = count(global_batch, global_batch)
    return ahead_of(
        _iterate(jobs, _EvalPlan(shares), num_workers),
        index,
        eval_needs(index, chosen),
        start=0,
        position_after=lambda _: next(ends),
        num_ahead=_SHARDS_AHEAD,
    )


@dataclass(frozen=True)
class _TrainPlan(Sampler[Cursor]):
    """All batches of a run, walked and never listed: 300 ImageNet epochs would be a million cursors."""

    num_samples: int
    global_batch: int
    start: Cursor
    num_epochs: int

    def __iter__(self) -> Iterator[Cursor]:
        return plan_train(self.num_samples, self.global_batch, self.start, self.num_epochs)


@dataclass(frozen=True)
class _EvalPlan(Sampler[NDArray[np.int64]]):
    """This rank's slots, batch by batch."""

    shares: list[NDArray[np.int64]]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return iter(self.shares)


def _iterate_train(jobs: TrainBatches, plan: _TrainPlan, num_workers: int) -> Iterator[tuple[Cursor, Batch]]:
    for cursor, batch in zip(plan, _iterate(jobs, plan, num_workers), strict=True):
        yield advance(cursor, plan.num_samples, global_batch=plan.global_batch), batch


def _iterate(
    jobs: Dataset[Batch | Exception], plan: _TrainPlan | _EvalPlan, num_workers: int
) -> Iterator[Batch]:
    loader: DataLoader[Batch | Exception] = DataLoader(
        jobs,
        sampler=plan,
        batch_size=None,  # a job is a whole batch
        collate_fn=_as_is,
        num_workers=num_workers,
        prefetch_factor=_PREFETCH if num_workers else None,
        multiprocessing_context=worker_context() if num_workers else None,
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),  # or it would draw its workers' seed from the global generator
    )
    for result in loader:
        if isinstance(result, Exception):
            raise result
        yield result


def _as_is(batch: Any) -> Any:
    return batch


def check_layout(global_batch: int, *, rank: int, world_size: int, image_size: int, num_workers: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes does not exist; ranks are 0..world_size-1")
    if global_batch < 1 or global_batch % world_size:
        lower = max(global_batch // world_size, 1) * world_size
        raise ValueError(
            f"global batch {global_batch} is not divisible by {world_size} processes; "
            f"try {lower} or {lower + world_size}"
        )
    if image_size < 1:
        raise ValueError(f"image size {image_size} must be at least 1 pixel")
    if num_workers < 0:
        raise ValueError(
            f"{num_workers} workers is not a number of processes; use 0 to load in the main process"
        )


def check_epochs(
    transforms: Sequence[AugmentSettings], mixes: Sequence[MixSettings], num_epochs: int
) -> None:
    for name, settings in (("transform_of_epoch", transforms), ("mix_of_epoch", mixes)):
        if len(settings) != num_epochs:
            raise ValueError(
                f"{name} has {len(settings)} entries for {num_epochs} epochs; give one for each epoch"
            )


def check_pairs(local_batch: int, start: Cursor) -> None:
    if local_batch % 2:
        raise ValueError(
            f"batch {local_batch} per process is odd but mixing pairs neighbours; "
            f"use {local_batch + 1}, or no mixing"
        )
    if start.consumed % 2:
        raise ValueError(
            f"{start} was saved with an odd batch; mixing pairs neighbours, so start at the epoch's begin"
        )


def _check_keys(keys: NDArray[np.int64], num_samples: int) -> NDArray[np.int64]:
    keys = np.asarray(keys)
    if keys.ndim != 1 or (keys.size and keys.dtype.kind not in "iu"):
        raise ValueError(
            f"keys of shape {keys.shape} and type {keys.dtype} are not a list of dataset positions"
        )
    if keys.size and not (keys.min() >= 0 and keys.max() < num_samples):
        raise ValueError(f"keys {keys.min()}..{keys.max()} reach outside the dataset's 0..{num_samples - 1}")
    if len(np.unique(keys)) != len(keys):
        raise ValueError("a key is given twice; an evaluation counts each sample once")
    return keys.astype(np.int64)
