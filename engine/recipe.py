"""A recipe: everything that decides what is trained and measured, read from YAML, checked as a whole, frozen.

    recipe = load_recipe("recipes/quickstart.yaml", ["optim.lr=1e-3"])

Whatever is wrong with it comes out as one line, before any process, model or data set is opened.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, model_validator

from engine.fields import (
    AttackEval,
    DataSection,
    EvalEntry,
    ModelSection,
    ObjectiveSection,
    OptimSection,
    RunSection,
    SuiteEval,
)
from engine.mistake import known_fields, one_line
from engine.override import Tree, apply_overrides, load_tree, to_yaml
from engine.schedule import scaled_lr, scaled_min_lr
from engine.values import Section

# What may differ between a run and its resumption: none of it changes an update. Paths are free because the
# engine compares the data set's id; `run.epochs` is not, because the schedule depends on it.
RESUME_MAY_CHANGE = (
    *("name", "description", "published", "evals", "data.train", "data.val", "data.suites"),
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
    ),
)


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
        for check in (
            *(
                _check_decoding,
                _check_augment,
                _check_attack,
                _check_radii,
                _check_mixing,
                _check_warmup,
                _check_rates,
            ),
            _check_evals,
        ):
            check(self)
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
        alphas = [o.mixup, o.cutmix, *_values(self, "cutmix")]
        probs = _values(self, "mix_prob") or [o.mix_prob]
        return max(alphas) > 0 and max(probs) > 0


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` over its base, with `section.field=value` overrides; errors are one line."""
    tree = apply_overrides({"name": Path(path).stem, **load_tree(path)}, overrides)
    return parse_recipe(tree, f"recipe {path}")


def parse_recipe(tree: Mapping[str, object], source: str = "recipe") -> Recipe:
    """The recipe a plain mapping stands for; `source` begins the one line of an error."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        line = one_line(error, known_fields(Recipe))
    raise ValueError(f"{source}: {line}")


def resume_diff(old: Recipe, new: Recipe) -> list[str]:
    """Dotted names of the fields that differ and must not when a run is resumed."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    absent = object()
    changed = [name for name in {**before, **after} if before.get(name, absent) != after.get(name, absent)]
    return [name for name in changed if not _is_free(name)]


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


# ---- what one field says about another


def _check_augment(recipe: Recipe) -> None:
    if recipe.data.randaug_on == "device" and recipe.data.randaug is None:
        raise ValueError(
            "data.randaug_on is device, but data.randaug is null; set data.randaug=rand-m9-mstd0.5-inc1, or "
            "randaug_on=host"
        )
    if recipe.data.erase_after_mix and not (recipe.mixes and recipe.data.erase_prob > 0):
        raise ValueError(
            "data.erase_after_mix is true, but the recipe does not both erase and mix; set it to false"
        )


def _check_decoding(recipe: Recipe) -> None:
    if recipe.data.decode != "scaled":
        return
    if recipe.data.resampler == "pillow":
        raise ValueError(
            "data.decode is scaled, but data.resampler is pillow, whose point is timm's pixels; "
            "use decode=full or resampler=torch"
        )
    if recipe.data.repeats > 1:
        raise ValueError(
            f"data.decode is scaled, but data.repeats is {recipe.data.repeats} and each crop would decode its "
            "image again; use decode=full, or repeats=1"
        )


def _check_attack(recipe: Recipe) -> None:
    kind, attack = recipe.objective.kind, recipe.objective.attack
    if kind == "adversarial" and attack is None:
        raise ValueError(
            "objective.kind is adversarial but objective.attack is null; give norm, eps, step_size, steps"
        )
    if kind == "clean" and attack is not None:
        raise ValueError(
            "objective.kind is clean but objective.attack is given; set kind adversarial or attack=null"
        )
    if attack and attack.clean_prob > 0 and not attack.random_start:
        raise ValueError(
            f"objective.attack.clean_prob is {attack.clean_prob} but random_start is false, "
            "so every sample starts clean anyway; set one of the two"
        )


def _check_radii(recipe: Recipe) -> None:
    """An l2 ball wider than the set of all images forbids nothing: its radius is in another unit."""
    attacks = {f"evals[{i}]": entry for i, entry in enumerate(recipe.evals) if isinstance(entry, AttackEval)}
    widest = math.sqrt(3) * recipe.data.image_size
    for where, attack in {"objective.attack": recipe.objective.attack, **attacks}.items():
        for field in ("eps", "step_size") if attack and attack.norm == "l2" else ():
            if (value := getattr(attack, field)) > widest:
                raise ValueError(
                    f"{where}.{field} is {value:g}, but images of {recipe.data.image_size} px are at most "
                    f"{widest:.4g} apart in l2; likely meant: {value:g}/255"
                )


def _check_mixing(recipe: Recipe) -> None:
    objective, batch = recipe.objective, recipe.run.batch_size
    if not recipe.mixes:
        return
    if batch % 2:
        raise ValueError(
            f"run.batch_size is {batch}, but mixing pairs neighbours and needs it even; use {batch + 1}"
        )
    group = objective.mix_group
    if group and (group % 2 or batch % group):
        raise ValueError(
            f"objective.mix_group is {group}, but must be even and divide run.batch_size {batch}; try 2"
        )


def _check_warmup(recipe: Recipe) -> None:
    objective, warmup = recipe.objective, recipe.objective.warmup
    if warmup is None:
        return
    has_cutmix = max([objective.cutmix, *_values(recipe, "cutmix")]) > 0
    mixing, both = objective.mixup > 0 or has_cutmix, objective.mixup > 0 and has_cutmix
    needs = {
        "magnitude": (recipe.data.randaug is not None, "data.randaug=rand-m9-mstd0.5-inc1"),
        "mix_prob": (mixing, "objective.mixup or objective.cutmix above 0"),
        "switch_prob": (both, "both objective.mixup and objective.cutmix above 0"),
        "eps": (objective.attack is not None, "objective.attack"),
    }
    for field, (has_target, remedy) in needs.items():
        if getattr(warmup, field) is not None and not has_target:
            raise ValueError(
                f"objective.warmup.{field} is given but has nothing to act on; set {remedy}, or drop it"
            )
    highest = max([0.0, *_values(recipe, "eps")])
    if objective.attack and highest > objective.attack.eps:
        raise ValueError(
            f"objective.warmup.eps goes up to {highest:.6g}, but objective.attack.eps is "
            f"{objective.attack.eps:.6g}; raise the attack's eps or lower the warm-up"
            + (f" (likely meant: {highest:g}/255)" if objective.attack.eps < 1 < highest else "")
        )


def _values(recipe: Recipe, field: str) -> list[float]:
    """The values the warm-up of `field` takes; empty where it has none."""
    points: tuple[tuple[int, float], ...] | None = getattr(recipe.objective.warmup, field, None)
    return [value for _, value in points or ()]


def _check_rates(recipe: Recipe) -> None:
    optim, run = recipe.optim, recipe.run
    if optim.warmup_epochs > run.epochs:
        raise ValueError(
            f"optim.warmup_epochs is {optim.warmup_epochs:g} but run.epochs is {run.epochs}; "
            "shorten the warm-up or train longer"
        )
    peak, lowest = scaled_lr(optim, run.batch_size), scaled_min_lr(optim, run.batch_size)
    if lowest > peak:
        raise ValueError(f"optim.min_lr is {lowest:.6g}, above the scaled optim.lr {peak:.6g}; lower min_lr")
    if optim.scale_all_lr and optim.lr_base_batch is None:
        raise ValueError(
            "optim.scale_all_lr is true but optim.lr_base_batch is null; give the batch size lr is for"
        )
    if optim.name == "sgd" and optim.nesterov and optim.momentum == 0:
        raise ValueError(
            "optim.nesterov is true but optim.momentum is 0; give a momentum or set nesterov=false"
        )


def _check_evals(recipe: Recipe) -> None:
    for place, entry in enumerate(recipe.evals):
        _check_entry(recipe, entry, f"evals[{place}]")
    # A suite may be called like another entry's result on averaged weights.
    names = [name for e in recipe.evals for name in dict.fromkeys((e.name, *_names(recipe, e)))]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated:
        raise ValueError(
            f"evals has two entries named {repeated}, so their results would mix; change or drop one"
        )
    best = recipe.run.best
    kept = {name for entry in recipe.evals if entry.every for name in _names(recipe, entry)}
    if best is not None and best not in kept:
        known = ", ".join(sorted(kept)) or "none"
        raise ValueError(
            f"run.best is {best!r}, but the evaluations with `every` are: {known}; name one, or give it `every`"
        )


def _check_entry(recipe: Recipe, entry: EvalEntry, where: str) -> None:
    if entry.weights == "ema" and recipe.optim.ema is None:
        raise ValueError(f"{where}.weights is ema but optim.ema is null; give a decay, or use raw")
    if isinstance(entry, SuiteEval):
        if entry.data is not None:
            return
        if entry.suite != "clean" and recipe.data.suites is None:
            raise ValueError(
                f"{where}.suite is {entry.suite}, but neither its data nor data.suites is given; give the folder "
                "of its shards, or of all suites"
            )
        if entry.suite != "clean":
            return
    if recipe.data.val is None:
        raise ValueError("evals are given but data.val is null; give the shards to evaluate on, or evals=[]")


def _names(recipe: Recipe, entry: EvalEntry) -> list[str]:
    """Names of the entry's results."""
    with_ema = entry.weights != "raw" and recipe.optim.ema is not None
    raw = [] if entry.weights == "ema" else [entry.name]
    return raw + ([f"{entry.name}-ema"] if with_ema else [])
