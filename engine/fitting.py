"""What `eval --suite all` judges of what lies in a folder: a set that is not for this model is passed over with a line,
and those that are not there are named. Without `all`, whatever does not fit is an error."""

from collections.abc import Sequence

from data.class_map import is_imagenet
from data.suite import NotForThis
from engine.eval_fields import AnyEval, SuiteEval
from engine.recipe import Recipe
from engine.sources import Access
from engine.suite_places import ALL, missing_suites
from engine.suites import open_eval_set


def fitting(
    recipe: Recipe, access: Access, classes: Sequence[str], *, suites: str | None, root: str | None
) -> tuple[Recipe, list[str]]:
    """The recipe with the evaluations that can be made, and lines to say. `suites`: --suite, None for an attack.

    ValueError or OSError where one cannot be opened, or with `all` where none is left.
    """
    takes_all = suites is not None and ALL in suites.split(",")
    kept: list[AnyEval] = []
    lines: list[str] = []
    for entry in recipe.evals:
        try:
            open_eval_set(recipe, entry, access, classes=classes)
            kept.append(entry)
        except NotForThis as error:
            if not takes_all:
                raise
            lines.append(f"passed over: {' '.join(str(error).split())}")
    if not takes_all:
        return recipe, []
    if not kept:
        raise ValueError(f"--suite all: none of the suites fits this model; {lines[0]}")
    found = [entry.suite for entry in recipe.evals if isinstance(entry, SuiteEval)]
    missing = missing_suites(root or recipe.data.suites, found) if is_imagenet(classes) else []
    return recipe.model_copy(update={"evals": kept}), lines + missing
