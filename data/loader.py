"""Batches in the order of `data.order`, each made whole by one stateless worker.

A task is a cursor: everything in a batch is a function of (index, settings, cursor, rank), so any number of
workers gives the same bits and the only state to save is the cursor that comes with each batch. One pool serves all
epochs, so workers start once and read ahead over the epoch's end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.bad import BadSample
from data.batch import Batch
from data.draws import MixSettings
from data.index import DatasetIndex
from data.jobs import EvalBatches, TrainBatches
from data.lookahead import ahead_of, eval_needs, train_needs
from data.order import Cursor, advance, plan_eval, plan_train
from data.pool import STUCK_AFTER_S, Job, Pin, Pool, Warn
from data.read import ShardReader
from data.repeat import RepeatedOrder
from data.slots import as_batch, new_arrays
from data.store import RemoteShards
from data.transform import AugmentSettings, EvalTransform
from data.window import FullOrder, SampleOrder, WindowOrder

OnBad = Callable[[Sequence[BadSample]], None]
Given = TypeVar("Given")
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
    on_bad: OnBad | None = None,
    stuck_after_s: float = STUCK_AFTER_S,
    warn: Warn | None = None,
    pin: Pin | None = None,
) -> Iterator[tuple[Cursor, Batch]]:
    """This rank's share of every global batch from `start` to the end of epoch `num_epochs - 1`.

    `window`: shards that are shuffled together (see `data.window`); None shuffles all samples of the epoch, which
    needs remote data whole in the cache. `repeats`: copies of each image, see `data.repeat`. `on_bad` is told of
    the bad samples of a batch, just before it comes, and others stand in for them (`data.bad.stand_ins`); None
    raises the first one. `stuck_after_s`, `warn`, `pin`: see `data.pool`.

    Yields (cursor after the batch, Batch); storing that cursor and passing it as `start` continues exactly.
    The last batch of an epoch comes with Cursor(epoch + 1, 0). ValueError for settings that cannot work, at
    the call; BadSample, DataLimit, OSError or ChildProcessError while iterating.
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
        replaces_bad=on_bad is not None,
    )
    plan = _TrainPlan(index.num_samples, global_batch, start, num_epochs)
    size = index.num_samples
    return ahead_of(
        _iterate_train(jobs, plan, _Making(index, num_workers, on_bad, stuck_after_s, warn, pin)),
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
    on_bad: OnBad | None = None,
    stuck_after_s: float = STUCK_AFTER_S,
    warn: Warn | None = None,
    pin: Pin | None = None,
) -> Iterator[Batch]:
    """This rank's share of ceil(M / global_batch) batches over M keys (all of them for None), each key once
    over all ranks; slots past the end are masked. `on_bad` is told of the bad samples of a batch, just before it
    comes: they have their key, label and mask, and a black image; None raises the first one. Other arguments and
    errors as in `train_loader`.
    """
    check_layout(
        global_batch, rank=rank, world_size=world_size, image_size=image_size, num_workers=num_workers
    )
    chosen = (
        np.arange(index.num_samples, dtype=np.int64) if keys is None else _check_keys(keys, index.num_samples)
    )
    local = global_batch // world_size
    shares = [row[rank * local : (rank + 1) * local] for row in plan_eval(chosen, global_batch)]
    jobs = EvalBatches(
        reader=ShardReader(index),
        seed=seed,
        local_batch=local,
        image_size=image_size,
        resize=resize,
        allows_bad=on_bad is not None,
    )
    ends = count(global_batch, global_batch)
    return ahead_of(
        _iterate(jobs, iter(shares), _Making(index, num_workers, on_bad, stuck_after_s, warn, pin)),
        index,
        eval_needs(index, chosen),
        start=0,
        position_after=lambda _: next(ends),
        num_ahead=_SHARDS_AHEAD,
    )


class _TrainPlan(NamedTuple):
    """All batches of a run, walked and never listed: 300 ImageNet epochs would be a million cursors."""

    num_samples: int
    global_batch: int
    start: Cursor
    num_epochs: int

    def cursors(self) -> Iterator[Cursor]:
        return plan_train(self.num_samples, self.global_batch, self.start, self.num_epochs)


@dataclass(frozen=True, slots=True)
class _Making:
    """How batches are made, whatever is in them."""

    index: DatasetIndex
    num_workers: int
    on_bad: OnBad | None
    stuck_after_s: float
    warn: Warn | None
    pin: Pin | None


def _iterate_train(jobs: TrainBatches, plan: _TrainPlan, making: _Making) -> Iterator[tuple[Cursor, Batch]]:
    batches = _iterate(jobs, plan.cursors(), making)
    for cursor in plan.cursors():
        yield advance(cursor, plan.num_samples, global_batch=plan.global_batch), next(batches)
    assert next(batches, None) is None, "one batch for each cursor"


def _iterate(jobs: Job[Given], tasks: Iterator[Given], making: _Making) -> Iterator[Batch]:
    first = next(tasks, None)
    if first is None:  # no workers for nothing
        return
    made = _made(jobs, chain([first], tasks), making)
    while (item := next(made, None)) is not None:
        if item[1] and making.on_bad is not None:
            making.on_bad(item[1])
        yield item[0]
        del item  # or the batch would keep its memory while the next one is waited for


def _made(
    jobs: Job[Given], tasks: Iterator[Given], making: _Making
) -> Iterator[tuple[Batch, list[BadSample]]]:
    if not making.num_workers:
        shape = jobs.shape
        for task in tasks:
            arrays = new_arrays(shape)
            bad = jobs.fill(task, arrays, lambda key: None)
            yield as_batch(arrays), bad
        return
    pool = Pool(
        jobs,
        num_workers=making.num_workers,
        name_of=making.index.describe,
        stuck_after_s=making.stuck_after_s,
        warn=making.warn,
        pin=making.pin,
    )
    yield from pool.run(tasks)


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
