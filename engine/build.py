"""From a recipe to live objects. The recipe tree is opened here and nowhere deeper."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bits.ema import Ema
from bits.environment import Environment
from bits.noise import noise
from bits.state import TrainState
from data.augment import DeviceAugment, device_augment
from data.batch import Batch
from data.draws import MixSettings
from data.erase import Erase
from data.index import DatasetIndex, load_index
from data.jitter import Jitter
from data.loader import OnBad, train_loader
from data.order import Cursor
from data.pool import Pin, Warn
from data.transform import AugmentSettings, EvalTransform
from engine.optim import SGD, AdamW, TensorLrOptimizer, weight_decay_groups
from engine.recipe import Recipe
from engine.schedule import warmup_at
from models.norm import check_ghost
from models.pixel import PixelModel
from models.registry import create_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the global batch is divided: over processes, then over the devices of each."""

    global_batch: int
    per_process: int
    per_device: int


def batch_layout(batch_size: int, env: Environment, *, field: str = "run.batch_size") -> Layout:
    """ValueError when the global batch does not divide over processes and devices, with the nearest that do."""
    replicas = env.world_size * env.num_devices
    if batch_size % replicas:
        lower = batch_size // replicas * replicas
        near = f"{lower} or {lower + replicas}" if lower else f"{replicas}"
        raise ValueError(f"{field} {batch_size} is not divisible by {replicas} replicas; try {near}")
    return Layout(
        global_batch=batch_size,
        per_process=batch_size // env.world_size,
        per_device=batch_size // replicas,
    )


def open_shards(
    path: str, *, field: str, num_classes: int | None = None, classes: Sequence[str] | None = None
) -> DatasetIndex:
    """The index of shards at `path`, checked against a number of classes, or against the classes of a training.

    Names are compared and not only counted: a label means the class at its place in the list.
    """
    index = load_index(Path(path))
    if classes is not None and tuple(classes) != index.classes:
        raise ValueError(
            f"{field} {path} {_class_difference(index.classes, classes)}; the model would be misjudged"
        )
    if num_classes is not None and num_classes != len(index.classes):
        raise ValueError(
            f"{field} {path} has {len(index.classes)} classes and data.num_classes is {num_classes}; "
            "correct one of the two"
        )
    return index


def _class_difference(found: Sequence[str], trained: Sequence[str]) -> str:
    if len(found) != len(trained):
        return f"has {len(found)} classes and the training shards have {len(trained)}"
    place = next(i for i, (a, b) in enumerate(zip(found, trained, strict=True)) if a != b)
    return f"has class {found[place]!r} as number {place}, the training shards have {trained[place]!r} there"


def check_model(recipe: Recipe, *, num_classes: int | None = None) -> PixelModel:
    """Refuses a model that cannot be built; on the meta device, so no memory is filled and nothing is trained.

    The model without values; `num_classes` None: those of the recipe, else 1000.
    """
    extra: dict[str, Any] = dict(recipe.model.args)
    with torch.device("meta"):
        return create_model(
            recipe.model.name,
            num_classes=num_classes or recipe.data.num_classes or 1000,
            image_size=recipe.data.image_size,
            mean=recipe.model.mean,
            std=recipe.model.std,
            drop_path=recipe.model.drop_path,
            **extra,
        )


def build_model(recipe: Recipe, env: Environment, *, num_classes: int, layout: Layout | None) -> PixelModel:
    """The model on its device; initial weights are a function of run.seed alone, equal on every rank.

    `layout` None builds it for evaluation, where normalisation uses running statistics only.
    """
    if layout is not None:
        check_ghost(recipe.model.norm_stats, layout.per_device)
    torch.manual_seed(recipe.run.seed)

    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        # A function and not the bound method: deepcopy (the EMA's) would follow it into the environment.
        return env.sum_over_processes(tensor)

    extra: dict[str, Any] = dict(recipe.model.args)
    model = create_model(
        recipe.model.name,
        num_classes=num_classes,
        image_size=recipe.data.image_size,
        mean=recipe.model.mean,
        std=recipe.model.std,
        norm_stats=recipe.model.norm_stats,
        num_devices=env.num_devices,
        reduce=reduce,
        world_size=env.world_size,
        native_norm=env.native_batch_norm,
        drop_path=recipe.model.drop_path,
        **extra,
    )
    env.place(model)
    return model


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> TensorLrOptimizer:
    """AdamW or SGD with the usual two weight-decay groups."""
    o = recipe.optim
    groups = weight_decay_groups(model, o.weight_decay)
    if o.name == "adamw":
        return AdamW(groups, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    return SGD(groups, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)


def build_state(recipe: Recipe, env: Environment, *, num_classes: int, layout: Layout) -> TrainState:
    """A fresh training state on the device."""
    model = build_model(recipe, env, num_classes=num_classes, layout=layout)
    ema = None if recipe.optim.ema is None else Ema(model, recipe.optim.ema)
    state = TrainState(model=model, optimizer=build_optimizer(recipe, model), ema=ema)
    env.cut()
    return state


def build_train_loader(
    recipe: Recipe,
    env: Environment,
    index: DatasetIndex,
    *,
    layout: Layout,
    start: Cursor,
    on_bad: OnBad | None = None,
    warn: Warn | None = None,
    pin: Pin | None = None,
) -> Iterator[tuple[Cursor, Batch]]:
    """Batches of this process from `start` to the end of the run, with the cursor behind each. `on_bad`, `warn` and
    `pin` are those of `train_loader`.
    """
    d = recipe.data
    epochs = range(recipe.run.epochs)
    return train_loader(
        index,
        seed=recipe.run.seed,
        global_batch=layout.global_batch,
        rank=env.rank,
        world_size=env.world_size,
        start=start,
        num_epochs=recipe.run.epochs,
        image_size=d.image_size,
        transform_of_epoch=[augment_settings(recipe, epoch) for epoch in epochs],
        mix_of_epoch=[mix_settings(recipe, epoch) for epoch in epochs],
        num_workers=d.num_workers,
        repeats=d.repeats,
        on_bad=on_bad,
        stuck_after_s=d.stuck_after,
        warn=warn,
        pin=pin,
    )


def augment_settings(recipe: Recipe, epoch: int) -> AugmentSettings:
    """Crop, flip, RandAugment, colour jitter and erasing of one epoch."""
    d = recipe.data
    jitter = None
    if d.color_jitter is not None and max(d.color_jitter) > 0:
        brightness, contrast, saturation, hue = d.color_jitter
        jitter = Jitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    return AugmentSettings(
        scale=d.scale,
        ratio=d.ratio,
        flip=d.flip,
        randaug=d.randaug,
        magnitude=warmup_at(recipe.objective, epoch).magnitude,
        interpolation=d.interpolation,
        resampler=d.resampler,
        decode=d.decode,
        apply_exif=d.apply_exif,
        fill=_fill_colour(recipe.model.mean),
        randaug_on=d.randaug_on,
        jitter=jitter,
        erase=Erase(prob=d.erase_prob, mode=d.erase_mode, count=d.erase_count) if d.erase_prob > 0 else None,
    )


def build_augment(recipe: Recipe) -> DeviceAugment:
    """The part of the augmentation that runs in the train step: none, unless the recipe has some."""
    return device_augment(
        augment_settings(recipe, 0),
        erase_after_mix=recipe.data.erase_after_mix,
        mean=recipe.model.mean,
        std=recipe.model.std,
        noise=noise,
    )


def _fill_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """What rotation and shear uncover: round(255 mean), as timm does."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def mix_settings(recipe: Recipe, epoch: int) -> MixSettings:
    """Mixup and cutmix of one epoch."""
    values = warmup_at(recipe.objective, epoch)
    return MixSettings(
        mixup_alpha=values.mixup,
        cutmix_alpha=values.cutmix,
        prob=values.mix_prob,
        switch_prob=values.switch_prob,
        group=recipe.objective.mix_group,
    )


def eval_transform(recipe: Recipe) -> EvalTransform:
    """The recipe's own evaluation transform (protocols with fixed ones are manifests)."""
    d = recipe.data
    return EvalTransform(
        mode="center" if d.eval_resize == "crop" else d.eval_resize,
        crop_pct=d.crop_pct,
        interpolation=d.interpolation,
        apply_exif=d.apply_exif,
    )
