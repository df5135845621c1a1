"""From a recipe to live objects. The recipe tree is opened here and nowhere deeper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bits.ema import Ema
from bits.environment import Environment
from bits.state import TrainState
from data.augment import DeviceAugment, device_augment
from data.draws import MixSettings
from data.erase import Erase
from data.jitter import Jitter
from data.transform import AugmentSettings, EvalTransform
from engine.fits_model import asks, check_asked
from engine.optim import SGD, AdamW, TensorLrOptimizer
from engine.param_groups import groups_of
from engine.recipe import Recipe
from engine.schedule import warmup_at
from models.attention import set_lean_attention
from models.head import train_head_only
from models.norm import check_ghost, parse_norm_stats
from models.pixel import PixelModel
from models.recompute import recompute_blocks
from models.registry import create_model
from robust.noise import noise


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


def check_model(recipe: Recipe, *, num_classes: int | None = None) -> PixelModel:
    """Refuses a model that cannot be built; on the meta device, so no memory is filled and nothing is trained.

    The model without values; `num_classes` None: those of the recipe, else 1000.
    """
    extra: dict[str, Any] = dict(recipe.model.args)
    with torch.device("meta"):
        model = create_model(
            recipe.model.name,
            num_classes=num_classes or recipe.data.num_classes or 1000,
            image_size=recipe.data.image_size,
            mean=recipe.model.mean,
            std=recipe.model.std,
            split_norm=recipe.model.split_norm,
            drop_path=recipe.model.drop_path,
            **extra,
        )
    check_asked(recipe, model)
    return model


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
        split_norm=recipe.model.split_norm,
        num_devices=env.spread,
        reduce=reduce,
        world_size=env.parts,
        native_norm=env.native_batch_norm,
        drop_path=recipe.model.drop_path,
        **extra,
    )
    if not env.fused_attention:
        set_lean_attention(model)
    env.place(model)
    return model


def norm_words(recipe: Recipe, model: torch.nn.Module, layout: Layout) -> str:
    """Which images a training of `model` normalises together, in words for the log and the report."""
    if not any("running_mean" in name for name, _ in model.named_buffers()):
        return "no BatchNorm"
    stats = parse_norm_stats(recipe.model.norm_stats)
    size = {
        "local": layout.per_device,
        "global": layout.global_batch,
        "ghost": stats.group_size,
        "groups": layout.per_device // max(stats.groups, 1),
    }[stats.kind]
    return f"{recipe.model.norm_stats}: {layout.global_batch // size} x {size} images in each forward pass"


def build_optimizer(recipe: Recipe, model: torch.nn.Module) -> TensorLrOptimizer:
    """AdamW or SGD over the recipe's parameter groups, with its state."""
    o = recipe.optim
    groups = groups_of(o, model)
    optimizer: TensorLrOptimizer
    if o.name == "adamw":
        optimizer = AdamW(groups, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    else:
        optimizer = SGD(groups, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)
    optimizer.prime()
    return optimizer


def build_state(
    recipe: Recipe,
    env: Environment,
    *,
    num_classes: int,
    layout: Layout,
    start: Callable[[PixelModel], object] | None = None,
) -> TrainState:
    """A fresh training state on the device; `start` puts other weights than random ones into the model."""
    if asks(recipe):
        check_model(recipe, num_classes=num_classes)
    model = build_model(recipe, env, num_classes=num_classes, layout=layout)
    if start is not None:
        start(model)
    if recipe.model.trainable == "head":
        train_head_only(model)
    if recipe.model.recompute:
        recompute_blocks(model, env.recompute)
    ema = None if recipe.optim.ema is None else Ema(model, recipe.optim.ema)
    state = TrainState(model=model, optimizer=build_optimizer(recipe, model), ema=ema)
    env.cut()  # of what was made, or it would be traced into the first step
    return state


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
        jitter_on=d.color_jitter_on,
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
    values, attack = warmup_at(recipe.objective, epoch), recipe.objective.attack
    return MixSettings(
        mixup_alpha=values.mixup,
        cutmix_alpha=values.cutmix,
        prob=values.mix_prob,
        switch_prob=values.switch_prob,
        group=recipe.objective.mix_group,
        one_start=attack is not None and attack.start_rule == "batch_normal",
    )


def eval_transform(recipe: Recipe) -> EvalTransform:
    """The recipe's own evaluation transform (protocols with fixed ones are manifests)."""
    d = recipe.data
    return EvalTransform(
        mode="center" if d.eval_resize == "crop" else d.eval_resize,
        crop_pct=d.crop_pct,
        interpolation=d.eval_interpolation or d.interpolation,
        apply_exif=d.apply_exif,
    )
