"""What `run.health` says about other fields of a recipe."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.recipe import Recipe


def check_health(recipe: "Recipe") -> None:
    """ValueError for the first thing that does not fit."""
    health, attack = recipe.run.health, recipe.objective.attack
    if health.every is not None and attack is None:
        raise ValueError(
            f"run.health.every is {health.every}, but objective.attack is null and there is no attack to watch; set "
            "it to null"
        )
    if health.rollback and health.every is None:
        raise ValueError(
            "run.health.rollback is true, but run.health.every is null and nothing is checked; give a number of "
            "updates such as 100"
        )
