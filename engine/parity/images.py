"""The batches of a comparison: the recipe's own where its shards lie here, else generated ones of its size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from bits.environment import Environment
from data.augment import with_augment
from data.batch import Batch
from data.draws import draw_train
from data.index import DatasetIndex
from data.order import Cursor, hash64
from data.remote import is_url
from engine.build import Layout, augment_settings, mix_settings
from engine.loading import build_train_loader
from engine.phases import phases_of
from engine.recipe import Recipe
from engine.sources import Access, numbered
from engine.training_set import open_training_set

GENERATED_BATCHES: Final = 100  # of an epoch that nobody has the images of


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Where batches come from; `index` None: generated."""

    recipe: Recipe
    index: DatasetIndex | None
    num_samples: int  # of an epoch
    classes: tuple[str, ...]
    why: str = ""  # generated ones are used

    def batches(self, env: Environment, layout: Layout, start: Cursor) -> Iterator[tuple[Cursor, Batch]]:
        """From `start` on, each with the cursor behind it."""
        if self.index is not None:
            yield from build_train_loader(self.recipe, env, self.index, layout=layout, start=start)
            return
        epoch, consumed = start.epoch, start.consumed
        while True:
            batch = self._generate(epoch, consumed, layout.global_batch)
            consumed += layout.global_batch
            if consumed + layout.global_batch > self.num_samples:
                epoch, consumed = epoch + 1, 0
            yield Cursor(epoch, consumed), batch

    def _generate(self, epoch: int, consumed: int, count: int) -> Batch:
        recipe, seed = self.recipe, self.recipe.run.seed
        size = next(phase.image_size for phase in phases_of(recipe) if epoch < phase.end)
        places = np.arange(consumed, consumed + count)
        seeds = hash64(seed, "sample", epoch, places).astype(np.int64)
        draw = draw_train(
            places, mix_settings(recipe, epoch), seed=seed, epoch=epoch, batch_start=consumed, image_size=size
        )
        draw = with_augment(draw, seeds, augment_settings(recipe, epoch), image_size=size)
        generator = torch.Generator().manual_seed(int(seeds[0]) & 0x7FFFFFFF)
        # Soft blobs under fine noise: white noise alone is unlike any image.
        blobs = F.interpolate(
            torch.rand(count, 3, 8, 8, generator=generator), size=(size, size), mode="bilinear"
        )
        image = 0.8 * blobs + 0.2 * torch.rand(count, 3, size, size, generator=generator)
        return Batch(
            image=(255 * image).to(torch.uint8),
            label=torch.randint(0, len(self.classes), (count,), generator=generator),
            mask=torch.ones(count, dtype=torch.bool),
            key=torch.from_numpy(places),
            seed=torch.from_numpy(seeds),
            draw=torch.from_numpy(draw),
        )

    def take(self, env: Environment, layout: Layout, start: Cursor) -> list[tuple[Cursor, Batch]]:
        """Those of one update."""
        return list(islice(self.batches(env, layout, start), self.recipe.optim.accumulate))


def open_images(recipe: Recipe) -> Images:
    """The recipe's images where they are shards on this machine's disk. Nothing is fetched or written."""
    generated = "" if not is_url(recipe.data.train) else "data.train is a URL"
    if not generated:
        try:
            index = open_training_set(recipe, Access(recipe.data.cache, builds=False))
            if isinstance(index, DatasetIndex) and index.num_samples >= recipe.run.batch_size:
                return Images(
                    recipe=recipe, index=index, num_samples=index.num_samples, classes=tuple(index.classes)
                )
            generated = (
                "data.train is a stream" if not isinstance(index, DatasetIndex) else "it has too few images"
            )
        except (ValueError, OSError) as error:
            generated = " ".join(str(error).split())
    classes = recipe.data.num_classes or 1000
    return Images(
        recipe=recipe,
        index=None,
        num_samples=GENERATED_BATCHES * recipe.run.batch_size,
        classes=numbered(classes),
        why=generated,
    )
