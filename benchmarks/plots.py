"""The two pictures of TRAIN.md, drawn from the toolkit's own schedule functions:

    python benchmarks/plots.py

writes docs/lr_scaling.png and docs/augmentation_warmup.png.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.fields import WARMUP_PRESETS, ObjectiveSection, OptimSection
from engine.recipe import Recipe, load_recipe
from engine.schedule import lr_at, scaled_lr, warmup_at

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
BATCHES = tuple(2**n for n in range(6, 14))
PEAKS = {  # recipe -> its label
    "bai2021/res50_align": "bai2021/res50_align\n(lr_base_batch 256)",
    "wang2023/deit_small": "wang2023",
    "bai2021/deit_small": "bai2021/deit_small",
    "bai2021/adv_deit_small": "bai2021/adv_deit_small",
}
CURVES = {
    "bai2021/deit_small": ("cosine, epoch_late (bai2021/deit_small)", BLUE, "-"),
    "xu2022/deit_small": ("cosine behind the warm-up, by updates (xu2022/deit_small)", GREEN, "-"),
    "bai2021/adv_res50_gelu": ("drops, epoch_late (bai2021/adv_res50_gelu)", ORANGE, "-"),
}


def recipe_of(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml")


def quiet(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_scaling(axes: Axes) -> None:
    for scaling, colour in (("linear", BLUE), ("sqrt", ORANGE)):
        optim = OptimSection.model_validate({"lr": 5e-4, "lr_base_batch": 512, "lr_scaling": scaling})
        axes.loglog(BATCHES, [scaled_lr(optim, batch) for batch in BATCHES], color=colour, label=scaling)
    for name, label in PEAKS.items():
        recipe = recipe_of(name)
        batch, rate = (
            recipe.run.batch_size * recipe.optim.accumulate,
            scaled_lr(recipe.optim, recipe.run.batch_size),
        )
        axes.plot([batch], [rate], "o", color=GREY, markersize=5)
        axes.annotate(
            label, (batch, rate), textcoords="offset points", xytext=(-7, 4), fontsize=8, ha="right"
        )
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES], fontsize=8)
    axes.minorticks_off()
    axes.set_xlim(left=34)
    axes.legend(
        title="lr 5e-4, lr_base_batch 512", frameon=False, fontsize=8, title_fontsize=8, loc="lower right"
    )
    quiet(
        axes, title="Peak learning rate", x="images of an update: batch_size x accumulate", y="learning rate"
    )


def draw_curves(axes: Axes, last: int) -> None:
    for name, (label, colour, style) in CURVES.items():
        recipe = recipe_of(name)
        optim, batch, steps = recipe.optim, recipe.run.batch_size, 50
        peak = scaled_lr(optim, batch)
        points = range(min(last, recipe.run.epochs) * steps)
        rates = [
            lr_at(optim, step, steps_per_epoch=steps, epochs=recipe.run.epochs, global_batch=batch) / peak
            for step in points
        ]
        axes.plot([step / steps for step in points], rates, style, color=colour, label=label, linewidth=1.4)
    axes.set_ylim(0, 1.08)


def lr_scaling(path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.9), width_ratios=(1.1, 1, 1))
    draw_scaling(left)
    draw_curves(middle, 14)
    quiet(middle, title="The first 14 epochs", x="epoch", y="share of the peak")
    draw_curves(right, 100)
    quiet(right, title="All 100", x="epoch", y="share of the peak")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, ncol=3, frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)


def augmentation_warmup(path: Path) -> None:
    epochs = range(15)
    panels = {
        "magnitude": "RandAugment's magnitude",
        "mix_prob": "mix probability",
        "cutmix": "cutmix alpha",
        "switch_prob": "switch probability",
    }
    figure, all_axes = plt.subplots(1, 4, figsize=(13, 3.4))
    for name, colour, width, size in (("bai2021", BLUE, 5.0, 0), ("smooth", ORANGE, 1.3, 4)):
        objective = ObjectiveSection.model_validate(
            {"mixup": 0.8, "cutmix": 1.0, "warmup": WARMUP_PRESETS[name]}
        )
        values = [warmup_at(objective, epoch) for epoch in epochs]
        for axes, field in zip(all_axes, panels, strict=True):
            found = [getattr(value, field) for value in values]
            # Wide below narrow: the two agree but for two epochs.
            alpha = 0.45 if width > 2 else 1.0
            axes.step(epochs, found, where="post", color=colour, linewidth=width, alpha=alpha, label=name)
            axes.plot(epochs, found, "o", color=colour, markersize=size)
    for axes, title in zip(all_axes, panels.values(), strict=True):
        axes.set_ylim(bottom=0)
        quiet(axes, title=title, x="epoch", y="")
    all_axes[0].legend(title="objective.warmup", frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    lr_scaling(ROOT / "docs/lr_scaling.png")
    augmentation_warmup(ROOT / "docs/augmentation_warmup.png")
