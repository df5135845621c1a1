"""What the fields of `objective` say about each other and about the rest: what cannot be, refused in one line."""

from typing import TYPE_CHECKING

from engine.fields import AttackSection

if TYPE_CHECKING:
    from engine.recipe import Recipe

TWO_FORWARDS = ("trades", "mart")  # and adversarial with a clean_weight
DISTILLED = ("clean", "adversarial")


def check_objective(recipe: "Recipe") -> None:
    """ValueError for the first that does not fit."""
    _check_given(recipe)
    if (attack := recipe.objective.attack) is not None:
        _check_start(recipe, attack)
        _check_target(recipe, attack)
        _check_mode(recipe, attack)
    _check_loss(recipe)
    _check_free(recipe)
    _check_norm(recipe)
    _check_distill(recipe)


def _check_given(recipe: "Recipe") -> None:
    kind, attack = recipe.objective.kind, recipe.objective.attack
    if kind != "clean" and attack is None:
        raise ValueError(
            f"objective.kind is {kind} but objective.attack is null; give norm, eps, step_size, steps"
        )
    if kind == "clean" and attack is not None:
        raise ValueError(
            "objective.kind is clean but objective.attack is given; set kind adversarial or attack=null"
        )


def _check_start(recipe: "Recipe", attack: AttackSection) -> None:
    if attack.clean_prob > 0 and not attack.random_start:
        raise ValueError(
            f"objective.attack.clean_prob is {attack.clean_prob} but random_start is false, "
            "so every sample starts clean anyway; set one of the two"
        )
    if attack.start_rule == "batch_normal" and not attack.random_start:
        raise ValueError(
            "objective.attack.start_rule is batch_normal but random_start is false, so there is no start to "
            "choose; set random_start=true, or start_rule=sample"
        )
    may_start_clean = not attack.random_start or attack.clean_prob > 0 or attack.start_rule != "sample"
    if recipe.objective.kind == "trades" and may_start_clean:
        raise ValueError(
            "objective.kind is trades, whose attack has no gradient at the clean image; set "
            "objective.attack.random_start=true, clean_prob=0 and start_rule=sample"
        )


def _check_target(recipe: "Recipe", attack: AttackSection) -> None:
    why = {
        "trades": "whose attack has no label",
        "free": "whose images move by the gradient of the weights' own loss",
    }.get(recipe.objective.kind)
    if attack.targeted and why:
        raise ValueError(
            f"objective.attack.targeted is true, but objective.kind is {recipe.objective.kind}, {why}; set it to false"
        )


def _check_mode(recipe: "Recipe", attack: AttackSection) -> None:
    if attack.mode == "groups" and not recipe.model.norm_stats.startswith("groups:"):
        raise ValueError(
            f"objective.attack.mode is groups, but model.norm_stats is {recipe.model.norm_stats}, which keeps no "
            "statistics of groups; use mode=eval, or norm_stats=groups:4"
        )


def _check_loss(recipe: "Recipe") -> None:
    objective = recipe.objective
    if objective.clean_weight > 0 and objective.kind != "adversarial":
        raise ValueError(
            f"objective.clean_weight is {objective.clean_weight:g}, but objective.kind is {objective.kind}; it is "
            "of kind adversarial: set it to 0"
        )
    if objective.loss == "bce" and objective.kind in ("trades", "mart"):
        raise ValueError(
            f"objective.loss is bce, but objective.kind is {objective.kind}, which has a loss of its own; use loss=ce"
        )
    if objective.kind != "mart":
        return
    if recipe.mixes:
        raise ValueError(
            "objective.kind is mart, which needs one label for an image, but the recipe mixes; set mixup=0, cutmix=0"
        )
    if objective.smoothing > 0:
        raise ValueError(
            f"objective.smoothing is {objective.smoothing:g}, but objective.kind is mart, which takes labels as they "
            "are; set it to 0"
        )


def _check_free(recipe: "Recipe") -> None:
    objective, accumulate = recipe.objective, recipe.optim.accumulate
    if objective.kind != "free":
        return
    if objective.attack is not None and objective.attack.steps != 1:
        raise ValueError(
            f"objective.attack.steps is {objective.attack.steps}, but objective.kind is free, which takes one step "
            "an update; set steps=1, and objective.replays"
        )
    if objective.warmup is not None and objective.warmup.steps is not None:
        raise ValueError(
            "objective.warmup.steps is given, but objective.kind is free, which takes one step an update; drop it"
        )
    if accumulate > 1:
        raise ValueError(
            f"optim.accumulate is {accumulate}, but objective.kind is free, which updates on every backward pass; "
            "set it to 1"
        )


def _check_norm(recipe: "Recipe") -> None:
    objective, model = recipe.objective, recipe.model
    if (objective.kind == "advprop") != model.split_norm:
        raise ValueError(
            f"objective.kind is {objective.kind} and model.split_norm is {str(model.split_norm).lower()}, but kind "
            f"advprop and a split norm need each other; set split_norm={str(objective.kind == 'advprop').lower()}"
        )
    copies = model.norm_stats.startswith("groups:") and "x" in model.norm_stats
    several = objective.kind in (*TWO_FORWARDS, "free") or objective.clean_weight > 0
    if copies and several:
        raise ValueError(
            f"model.norm_stats is {model.norm_stats}, whose copies take turns with the forward passes, but "
            "objective.kind makes several of a batch; use norm_stats without the x"
        )


def _check_distill(recipe: "Recipe") -> None:
    objective, distill = recipe.objective, recipe.objective.distill
    if distill is None:
        return
    if objective.kind not in DISTILLED:
        raise ValueError(
            f"objective.distill is given, but objective.kind is {objective.kind}, whose loss has no place for a "
            f"teacher; use {' or '.join(DISTILLED)}, or distill=null"
        )
    if objective.clean_weight > 0:
        raise ValueError(
            f"objective.distill is given, but objective.clean_weight is {objective.clean_weight:g}, which makes two "
            "losses of a batch; set clean_weight=0, or distill=null"
        )
    for field, plain in (("temperature", 1.0), ("normalise", "batchmean")):
        if distill.kind == "hard" and (value := getattr(distill, field)) != plain:
            raise ValueError(
                f"objective.distill.{field} is {value}, but objective.distill.kind is hard, which has none; drop it, "
                "or use kind=soft"
            )
