"""A teacher for a step that is only traced: the right model with weights that nobody has read.

The teacher's forward pass is part of the step, so its cost must be there; what its weights are changes no graph.
"""

from pathlib import Path

from bits.environment import Environment
from engine.build import build_model
from engine.recipe import Recipe, load_recipe
from engine.teacher import Teacher
from models.defaults import model_defaults
from models.hub import is_hub_name
from models.pixel import PixelModel
from models.registry import create_model

RECIPES = Path(__file__).parents[2] / "recipes"


def stand_in(recipe: Recipe, env: Environment, *, num_classes: int) -> Teacher | None:
    """For the teacher of `recipe`; None where it has none. ValueError where its model cannot be told."""
    distill = recipe.objective.distill
    if distill is None:
        return None
    model = _model(recipe, env, num_classes=num_classes).eval().requires_grad_(False)
    wanted = distill.precision or ("float32" if recipe.run.precision == "float32" else "bf16")
    return Teacher(model=model, in_bf16=wanted == "bf16", sha256="", about=model.name)


def _model(recipe: Recipe, env: Environment, *, num_classes: int) -> PixelModel:
    distill = recipe.objective.distill
    assert distill is not None, "a teacher without distillation"
    name = distill.teacher_model
    if name is None and is_hub_name(distill.teacher):
        name = distill.teacher.rpartition("/")[2].rpartition(":")[2]
    if name is None:
        taught_by = _recipe_of(Path(distill.teacher))
        if taught_by is None:
            raise ValueError(
                f"objective.distill.teacher {distill.teacher} is not there, and no recipe has that name; say which "
                "model it is: objective.distill.teacher_model=NAME"
            )
        return build_model(taught_by, env, num_classes=num_classes, layout=None)
    known = model_defaults(name)
    size = distill.teacher_image_size or known.image_size
    model = create_model(
        name, num_classes=num_classes, image_size=size, mean=known.mean, std=known.std, native_norm=False
    )
    env.place(model)
    return model


def _recipe_of(run: Path) -> Recipe | None:
    """Of a run that is there, or of the toolkit's recipe that makes a run of this name."""
    if (run / "recipe.yaml").is_file():
        return load_recipe(run / "recipe.yaml")
    for path in sorted(RECIPES.glob("*/*.yaml")):
        if f"{path.parent.name}-{path.stem}" == run.name:
            return load_recipe(path)
    return None
