"""`train --dry-run`: the recipe in full, what it would refuse, and what it would cost. Nothing is written."""

import os
from typing import Any

from bits.environment import Environment, open_environment
from engine.borrowed import try_on
from engine.build import check_model
from engine.cli import Launch
from engine.folder import RunFolder
from engine.meeting import check_pace
from engine.plan_table import show
from engine.planner import count
from engine.recipe import Recipe
from engine.sources import Access
from engine.trial import measured


def open_for_training(recipe: Recipe, launch: Launch) -> Environment:
    """The environment of a training and of its plan."""
    env = open_environment(
        launch.backend,
        precision=recipe.run.precision,
        world_size=launch.world_size,
        num_devices=launch.num_devices,
        deterministic=recipe.run.deterministic,
        reduce_dtype=recipe.run.reduce_dtype,
    )
    check_pace(env, recipe.evals)
    return env


def dry_run(
    recipe: Recipe, folder: RunFolder, access: Access, launch: Launch, *, measures: bool
) -> dict[str, Any]:
    """The result of the verb: the recipe's hash and the plan, which is measured where `measures`."""
    check_model(recipe)
    is_first = os.environ.get("RANK", "0") == "0"
    if is_first:
        print(f"{recipe.resolved_yaml()}# hash: {recipe.hash}", flush=True)
    plan, index = count(recipe, access)
    borrowed = try_on(recipe, folder, classes=None if index is None else index.classes)
    plan = plan.with_borrowed(recipe, borrowed)
    if measures:
        env = open_for_training(recipe, launch)
        try:
            plan = measured(plan, recipe, env, index, teacher=borrowed.teacher)
        finally:
            env.close()
    if is_first:
        show(plan)
    return {"recipe": recipe.hash, "plan": plan.as_dict()}
