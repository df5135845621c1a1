"""Which parameters are decayed and which learn more slowly: the groups that an optimizer is made of.

Every group has `params`, `weight_decay` and `lr_scale`. Frozen parameters are in none.
"""

from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.fields import OptimSection
from models.pixel import PixelModel

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float | None = None,
    decay_norm_weight: bool = False,
) -> list[dict[str, Any]]:
    """Groups by decay and, with `layer_decay`, by layer. ValueError for a model whose layers have no order.

    Decay as timm and DeiT have it: 1-D parameters, biases and what the model's `no_weight_decay()` names are not
    decayed, everything else is. `decay_norm_weight` decays the scale of norms too: that of Bai et al.'s adversarial
    ResNets is a depth-wise convolution of four dimensions.

    Layer decay as timm's `param_groups_layer_decay` (BEiT: Bao et al. 2021, arXiv:2106.08254): the classifier and
    what no pattern of the model's `group_matcher` matches learn at lr, each layer below at `layer_decay` times the
    one above it.
    """
    spared = _not_decayed(model, decay_norm_weight=decay_norm_weight)
    scales = {} if layer_decay is None else _layer_scales(model, layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale, is_decayed = scales.get(name, 1.0), name not in spared
            decay = weight_decay if is_decayed else 0.0
            empty = {"params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((scale, is_decayed), empty)["params"].append(parameter)
    # The decayed first and the slow first, whatever the model's order: an optimizer's state goes by place.
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def groups_of(optim: OptimSection, model: nn.Module) -> list[dict[str, Any]]:
    """The groups that a recipe asks for."""
    return parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        decay_norm_weight=optim.decay_norm_weight,
    )


def _not_decayed(model: nn.Module, *, decay_norm_weight: bool) -> set[str]:
    named: set[str] = set()
    scales: set[str] = set()
    for prefix, module in model.named_modules():
        here = f"{prefix}." if prefix else ""
        if callable(names := getattr(module, "no_weight_decay", None)):
            named |= {f"{here}{name}" for name in names()}
        if decay_norm_weight and isinstance(module, NORMS):
            scales.add(f"{here}weight")
    plain = {name for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith(".bias")}
    return (plain - scales) | named


def _layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    inner, prefix = (model.backbone, "backbone.") if isinstance(model, PixelModel) else (model, "")
    matcher = getattr(inner, "group_matcher", None)
    if not callable(matcher):
        name = model.name if isinstance(model, PixelModel) else type(inner).__name__
        raise ValueError(
            f"optim.layer_decay is {layer_decay:g}, but model {name!r} does not say in which order its layers are (it "
            "has no group_matcher); set it to null"
        )
    layers: dict[str, int] = group_parameters(inner, matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {prefix + name: layer_decay ** (top - layer) for name, layer in layers.items()}
