"""A recipe: everything that decides what is trained and measured, read from YAML, checked as a whole, frozen.

    recipe = load_recipe("recipes/quickstart.yaml", ["optim.lr=1e-3"])

Whatever is wrong with it comes out as one line, before any process, model or data set is opened.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, model_validator

from engine.eval_fields import EvalEntry
from engine.fields import DataSection, ModelSection, ObjectiveSection, OptimSection, RunSection
from engine.fits import check_fit, warmup_values
from engine.mistake import known_fields, one_line
from engine.override import Tree, apply_overrides, load_tree, to_yaml
from engine.values import Section
from engine.variants import expand

# What may differ between a run and its resumption: none of it changes an update. Paths are free because the
# engine compares the data set's id and the teacher's weights; `run.epochs` is not, because the schedule depends on it.
RESUME_MAY_CHANGE = (
    *("name", "description", "published", "evals", "data.train", "data.val", "data.suites", "data.cache"),
    *("model.init.path", "objective.distill.teacher"),
    *(
        "data.num_workers",
        "data.stuck_after",
        "data.max_bad",
        "data.eval_bad",
        "run.best",
        "run.gallery_images",
        "run.output",
        "run.report_every",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.tensorboard",
        "run.wandb",
        "run.preview_images",
        "run.max_steps",
        "run.maintenance_event",
    ),
)
# In the hash, for it decides an update; but null means what the checkpoint says, so the loop compares it.
RESUME_CHECKS_LATER = ("data.window",)


class Recipe(Section):
    name: str = ""
    description: str = ""
    published: dict[str, JsonValue] = Field(default_factory=dict)  # the paper's numbers, only to compare with
    data: DataSection
    model: ModelSection
    optim: OptimSection
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    evals: tuple[EvalEntry, ...] = Field(default=(), strict=False)
    run: RunSection

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        check_fit(self)
        return self

    def resolved_yaml(self) -> str:
        """Every field with its value, defaults too; loading it gives an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

    @property
    def hash(self) -> str:
        """16 hex digits that stand for every field that decides an update: not those a resumed run may change."""
        leaves = {
            name: value for name, value in _leaves(self.model_dump(mode="json")).items() if not _is_free(name)
        }
        canonical = json.dumps(leaves, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def mixes(self) -> bool:
        """Whether any epoch may mix: then every epoch runs the graph that can, and the batch must be even."""
        o = self.objective
        alphas = [o.mixup, o.cutmix, *warmup_values(self, "cutmix")]
        probs = warmup_values(self, "mix_prob") or [o.mix_prob]
        return max(alphas) > 0 and max(probs) > 0


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` over its base, with `section.field=value` overrides; errors are one line.

    `@NAME` among them stands for a list of overrides, see engine/variants.py; the recipe's name then ends in -NAME.
    """
    tree = {"name": Path(path).stem, **load_tree(path)}
    variants, words = expand(path, overrides)
    if variants:
        tree = {**tree, "name": "-".join(map(str, (tree["name"], *variants)))}
    tree = apply_overrides(tree, words)
    return parse_recipe(tree, f"recipe {path}")


def parse_recipe(tree: Mapping[str, object], source: str = "recipe") -> Recipe:
    """The recipe a plain mapping stands for; `source` begins the one line of an error."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        line = one_line(error, known_fields(Recipe))
    raise ValueError(f"{source}: {line}")


def resume_diff(old: Recipe, new: Recipe) -> list[str]:
    """Dotted names of the fields that differ and must not when a run is resumed; of data.window the loop says it."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    absent = object()
    changed = [name for name in {**before, **after} if before.get(name, absent) != after.get(name, absent)]
    return [name for name in changed if not _is_free(name) and name not in RESUME_CHECKS_LATER]


def _is_free(name: str) -> bool:
    return f"{name}.".startswith(tuple(f"{field}." for field in RESUME_MAY_CHANGE))


def _leaves(tree: Tree, prefix: str = "") -> Tree:
    leaves: Tree = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
