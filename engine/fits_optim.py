"""What learning rates, clipping, trainable parts and image sizes say about each other: refused in one line."""

from itertools import pairwise
from typing import TYPE_CHECKING

from engine.schedule import scaled_lr, scaled_min_lr

if TYPE_CHECKING:
    from engine.recipe import Recipe


def check_optim(recipe: "Recipe") -> None:
    """ValueError for the first that does not fit."""
    _check_rates(recipe)
    _check_scaling(recipe)
    _check_clipping(recipe)
    _check_head(recipe)
    _check_average(recipe)


def check_sizes(recipe: "Recipe") -> None:
    """Phases of image size lie within the run, change the size each, and end at that of the evaluation."""
    data = recipe.data
    if data.sizes is None:
        return
    last_epoch, last = data.sizes[-1]
    if last != data.image_size:
        raise ValueError(
            f"data.sizes ends at {last} px, but data.image_size is {data.image_size}, the size of the model and its "
            f"evaluations; end it with [{last_epoch}, {data.image_size}]"
        )
    if last_epoch >= recipe.run.epochs:
        raise ValueError(
            f"data.sizes begins a phase at epoch {last_epoch}, but run.epochs is {recipe.run.epochs}; begin it "
            "earlier, or train longer"
        )
    same = [epoch for (_, size), (epoch, after) in pairwise(data.sizes) if size == after]
    if same:
        raise ValueError(f"data.sizes does not change the size at epoch {same[0]}; drop that point")


def _check_rates(recipe: "Recipe") -> None:
    optim, run = recipe.optim, recipe.run
    if optim.warmup_epochs > run.epochs:
        raise ValueError(
            f"optim.warmup_epochs is {optim.warmup_epochs:g} but run.epochs is {run.epochs}; "
            "shorten the warm-up or train longer"
        )
    peak, lowest = scaled_lr(optim, run.batch_size), scaled_min_lr(optim, run.batch_size)
    if lowest > peak:
        raise ValueError(f"optim.min_lr is {lowest:.6g}, above the scaled optim.lr {peak:.6g}; lower min_lr")
    if optim.name == "sgd" and optim.nesterov and optim.momentum == 0:
        raise ValueError(
            "optim.nesterov is true but optim.momentum is 0; give a momentum or set nesterov=false"
        )


def _check_scaling(recipe: "Recipe") -> None:
    optim = recipe.optim
    if optim.lr_base_batch is not None:
        return
    if optim.scale_all_lr:
        raise ValueError(
            "optim.scale_all_lr is true but optim.lr_base_batch is null; give the batch size lr is for"
        )
    if not optim.lr_counts_accumulate:
        raise ValueError(
            "optim.lr_counts_accumulate is false but optim.lr_base_batch is null, so lr is not scaled; set it to true"
        )


def _check_clipping(recipe: "Recipe") -> None:
    optim = recipe.optim
    if optim.clip_agc is None:
        return
    if optim.clip_norm is not None:
        raise ValueError(
            f"optim.clip_norm is {optim.clip_norm:g} and optim.clip_agc is {optim.clip_agc:g}, two ways to clip; set "
            "one of them to null"
        )
    if recipe.model.trainable == "head":
        raise ValueError(
            f"optim.clip_agc is {optim.clip_agc:g}, but model.trainable is head, and the classifier is what it leaves "
            "out; use clip_norm"
        )


def _check_head(recipe: "Recipe") -> None:
    optim = recipe.optim
    if recipe.model.trainable == "head" and optim.layer_decay is not None:
        raise ValueError(
            f"optim.layer_decay is {optim.layer_decay:g}, but model.trainable is head, a single layer; set it to null"
        )


def _check_average(recipe: "Recipe") -> None:
    if recipe.optim.ema_warmup and recipe.optim.ema is None:
        raise ValueError("optim.ema_warmup is true but optim.ema is null; give a decay, such as 0.9999")
