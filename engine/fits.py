"""What one field of a recipe says about another: the combinations that cannot be, each refused in one line."""

import math
from typing import TYPE_CHECKING

from engine.eval_fields import EvalEntry, SuiteEval
from engine.fits_health import check_health
from engine.fits_objective import check_objective
from engine.fits_optim import check_optim, check_sizes

if TYPE_CHECKING:
    from engine.recipe import Recipe


def check_fit(recipe: "Recipe") -> None:
    """ValueError for the first that does not fit."""
    for check in (
        _check_stream,
        _check_decoding,
        _check_augment,
        check_objective,
        _check_radii,
        _check_mixing,
        _check_warmup,
        check_optim,
        check_sizes,
        check_health,
        _check_evals,
    ):
        check(recipe)


def warmup_values(recipe: "Recipe", field: str) -> list[float]:
    """The values the warm-up of `field` takes; empty where it has none."""
    points: tuple[tuple[int, float], ...] | None = getattr(recipe.objective.warmup, field, None)
    return [value for _, value in points or ()]


def _check_stream(recipe: "Recipe") -> None:
    """Tars without an index are read in order, so nothing that needs to find an image again can be had."""
    data, batch = recipe.data, recipe.run.batch_size
    if data.indexed:
        if data.epoch_images is not None:
            raise ValueError(
                f"data.epoch_images is {data.epoch_images}, but the index says how many images an epoch has; drop "
                "it, or train without an index (data.indexed=false, --no-index)"
            )
        return
    for field in ("num_classes", "epoch_images"):
        if getattr(data, field) is None:
            raise ValueError(
                f"data.{field} is null, but without an index (data.indexed=false) nothing else tells it; give a number"
            )
    if data.epoch_images is not None and data.epoch_images < batch:
        raise ValueError(
            f"data.epoch_images is {data.epoch_images}, less than run.batch_size {batch}; raise it or lower the batch"
        )
    if data.repeats > 1:
        raise ValueError(
            f"data.repeats is {data.repeats}, but a stream without an index (data.indexed=false) has each image "
            "once; use repeats=1, or an index"
        )
    if data.window is not None:
        raise ValueError(
            f"data.window is {data.window}, but a stream without an index (data.indexed=false) is read in order; "
            "set it to null, or use an index"
        )


def _check_augment(recipe: "Recipe") -> None:
    if recipe.data.randaug_on == "device" and recipe.data.randaug is None:
        raise ValueError(
            "data.randaug_on is device, but data.randaug is null; set data.randaug=rand-m9-mstd0.5-inc1, or "
            "randaug_on=host"
        )
    jitter = recipe.data.color_jitter
    if recipe.data.color_jitter_on == "device" and jitter is None:
        raise ValueError(
            "data.color_jitter_on is device, but data.color_jitter is null; set data.color_jitter=0.4, or "
            "color_jitter_on=host"
        )
    if jitter is not None and recipe.data.color_jitter_on == "host" and recipe.data.randaug_on == "device":
        raise ValueError(
            "data.randaug_on is device, but data.color_jitter_on is host, and colour jitter comes after RandAugment; "
            "use color_jitter_on=device"
        )
    if recipe.data.erase_after_mix and not (recipe.mixes and recipe.data.erase_prob > 0):
        raise ValueError(
            "data.erase_after_mix is true, but the recipe does not both erase and mix; set it to false"
        )


def _check_decoding(recipe: "Recipe") -> None:
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


def _check_radii(recipe: "Recipe") -> None:
    """An l2 or l1 ball wider than the set of all images forbids nothing: its radius is in another unit."""
    attacks = {
        f"evals[{i}]": entry for i, entry in enumerate(recipe.evals) if not isinstance(entry, SuiteEval)
    }
    numbers = 3 * recipe.data.image_size**2
    widest = {"l2": math.sqrt(numbers), "l1": float(numbers)}
    for where, attack in {"objective.attack": recipe.objective.attack, **attacks}.items():
        if attack is None or attack.norm == "linf":
            continue
        for field in ("eps", "step_size"):
            if (value := getattr(attack, field, 0.0)) > (most := widest[attack.norm]):
                raise ValueError(
                    f"{where}.{field} is {value:g}, but images of {recipe.data.image_size} px are at most "
                    f"{most:.4g} apart in {attack.norm}; likely meant: {value:g}/255"
                )


def _check_mixing(recipe: "Recipe") -> None:
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


def _check_warmup(recipe: "Recipe") -> None:
    objective, warmup = recipe.objective, recipe.objective.warmup
    if warmup is None:
        return
    has_cutmix = max([objective.cutmix, *warmup_values(recipe, "cutmix")]) > 0
    mixing, both = objective.mixup > 0 or has_cutmix, objective.mixup > 0 and has_cutmix
    needs = {
        "magnitude": (recipe.data.randaug is not None, "data.randaug=rand-m9-mstd0.5-inc1"),
        "mix_prob": (mixing, "objective.mixup or objective.cutmix above 0"),
        "switch_prob": (both, "both objective.mixup and objective.cutmix above 0"),
        "eps": (objective.attack is not None, "objective.attack"),
        "steps": (objective.attack is not None, "objective.attack"),
    }
    for field, (has_target, remedy) in needs.items():
        if getattr(warmup, field) is not None and not has_target:
            raise ValueError(
                f"objective.warmup.{field} is given but has nothing to act on; set {remedy}, or drop it"
            )
    highest = max([0.0, *warmup_values(recipe, "eps")])
    if objective.attack and highest > objective.attack.eps:
        raise ValueError(
            f"objective.warmup.eps goes up to {highest:.6g}, but objective.attack.eps is "
            f"{objective.attack.eps:.6g}; raise the attack's eps or lower the warm-up"
            + (f" (likely meant: {highest:g}/255)" if objective.attack.eps < 1 < highest else "")
        )
    most = max([0.0, *warmup_values(recipe, "steps")])
    if objective.attack and most > objective.attack.steps:
        raise ValueError(
            f"objective.warmup.steps goes up to {most:g}, but objective.attack.steps is {objective.attack.steps}; "
            "raise the attack's steps or lower the warm-up"
        )


def _check_evals(recipe: "Recipe") -> None:
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


def _check_entry(recipe: "Recipe", entry: EvalEntry, where: str) -> None:
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


def _names(recipe: "Recipe", entry: EvalEntry) -> list[str]:
    """Names of the entry's results."""
    with_ema = entry.weights != "raw" and recipe.optim.ema is not None
    raw = [] if entry.weights == "ema" else [entry.name]
    return raw + ([f"{entry.name}-ema"] if with_ema else [])
