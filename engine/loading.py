"""The batches of a run: one loader, or one for each phase of image size."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypedDict

from bits.environment import Environment
from data.batch import Batch
from data.draws import MixSettings
from data.loader import OnBad, train_loader
from data.order import Cursor
from data.pool import Pin, Warn
from data.stream import stream_loader
from data.transform import AugmentSettings
from engine.build import Layout, augment_settings, mix_settings
from engine.phases import Phase, phases_of
from engine.recipe import Recipe
from engine.training_set import Stream, TrainingSet

Batches = Iterator[tuple[Cursor, Batch]]


class _Common(TypedDict):
    """What shards and streams are loaded with alike."""

    seed: int
    global_batch: int
    rank: int
    world_size: int
    start: Cursor
    num_epochs: int
    image_size: int
    transform_of_epoch: Sequence[AugmentSettings]
    mix_of_epoch: Sequence[MixSettings]
    num_workers: int


def build_train_loader(
    recipe: Recipe,
    env: Environment,
    index: TrainingSet,
    *,
    layout: Layout,
    start: Cursor,
    window: int | None = None,
    on_bad: OnBad | None = None,
    warn: Warn | None = None,
    pin: Pin | None = None,
    say: Callable[[str], None] | None = None,
) -> Batches:
    """Batches of this process from `start` to the end of the run, with the cursor behind each. `window`, `on_bad`,
    `warn` and `pin` are those of `train_loader`; a stream has none of them. `say` is told when a phase begins.
    """

    def load(phase: Phase) -> Batches:
        epochs = range(phase.end)
        common = _Common(
            seed=recipe.run.seed,
            global_batch=layout.global_batch,
            rank=env.rank,
            world_size=env.world_size,
            start=max(start, Cursor(phase.first, 0)),
            num_epochs=phase.end,
            image_size=phase.image_size,
            transform_of_epoch=[augment_settings(recipe, epoch) for epoch in epochs],
            mix_of_epoch=[mix_settings(recipe, epoch) for epoch in epochs],
            num_workers=recipe.data.num_workers,
        )
        if isinstance(index, Stream):
            return stream_loader(
                index.shards,
                num_classes=len(index.classes),
                steps_per_epoch=index.num_samples // layout.global_batch,
                allow_pipes=index.allow_pipes,
                **common,
            )
        return train_loader(
            index,
            window=None if window is None or window >= len(index.shards) else window,
            repeats=recipe.data.repeats,
            on_bad=on_bad,
            stuck_after_s=recipe.data.stuck_after,
            warn=warn,
            pin=pin,
            **common,
        )

    left = [phase for phase in phases_of(recipe) if start.epoch < phase.end] or [phases_of(recipe)[-1]]
    # The first one now, because a loader refuses what cannot be when it is made; the others when their turn comes,
    # because a loader holds workers and shared memory.
    first = load(left[0])
    if recipe.data.sizes is None:
        return first
    return chain(_told(first, left[0], say), *(_told_later(load, phase, say) for phase in left[1:]))


def _told(batches: Batches, phase: Phase, say: Callable[[str], None] | None) -> Batches:
    if say is not None:
        say(f"epoch {phase.first}: images of {phase.image_size} px until epoch {phase.end}; a new graph")
    yield from batches


def _told_later(load: Callable[[Phase], Batches], phase: Phase, say: Callable[[str], None] | None) -> Batches:
    yield from _told(load(phase), phase, say)
