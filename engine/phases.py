"""Phases of a training with images of different sizes: low resolution first, the evaluation's size last."""

from dataclasses import dataclass
from itertools import pairwise

from engine.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Epochs `first` to `end` (not included), of images of `image_size` pixels."""

    first: int
    end: int
    image_size: int


def phases_of(recipe: Recipe) -> tuple[Phase, ...]:
    """The phases of a run, in order and without gaps; one where `data.sizes` is not given."""
    data = recipe.data
    points = [*(data.sizes or ((0, data.image_size),)), (recipe.run.epochs, 0)]
    return tuple(Phase(first=first, end=end, image_size=size) for (first, size), (end, _) in pairwise(points))
