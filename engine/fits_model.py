"""What a recipe asks of its model, and only the built model can answer: refused in one line."""

import torch

from engine.param_groups import groups_of
from engine.recipe import Recipe
from models.head import classifiers
from models.pixel import PixelModel
from models.recompute import blocks


def asks(recipe: Recipe) -> bool:
    """Whether there is anything to check."""
    optim = recipe.optim
    is_asked = (optim.layer_decay, optim.clip_agc, recipe.data.sizes)
    is_on = recipe.model.trainable == "head" or recipe.model.recompute
    return is_on or any(value is not None for value in is_asked)


def check_asked(recipe: Recipe, model: PixelModel) -> None:
    """`model` is on the meta device. ValueError for the first thing that it does not have."""
    if recipe.model.trainable == "head" or recipe.optim.clip_agc is not None:
        classifiers(model)
    if recipe.optim.layer_decay is not None:
        groups_of(recipe.optim, model)
    if recipe.model.recompute:
        blocks(model)
    mode = model.training
    for _, size in recipe.data.sizes or ():
        _check_size(model.eval(), size)
    model.train(mode)


def _check_size(model: PixelModel, size: int) -> None:
    image = torch.empty((2, 3, size, size), device="meta")
    try:
        with torch.no_grad():
            model(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.sizes has {size} px, which model {model.name!r} of {model.image_size} px does not take ({reason}); "
            "transformers of timm take any multiple of their patch with model.args.dynamic_img_size=true"
        ) from None
