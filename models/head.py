"""The classifier of a model, and training it alone (a linear probe).

A frozen part has no gradient, so none is computed, and DDP, which asks for `requires_grad` when it wraps, neither
waits for one nor sends it. It stays in eval mode whatever `train()` says: BatchNorm keeps the running statistics
that its weights were trained with, and dropout and drop-path are off, so an image has one feature vector.
"""

from typing import Any

from torch import nn

from models.pixel import PixelModel


def classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    """What turns features into logits: one module, or the two of a distilled DeiT. ValueError where nothing says."""
    inner: Any = model.backbone if isinstance(model, PixelModel) else model
    getter = getattr(inner, "get_classifier", None)
    found = getattr(inner, "head", None) if getter is None else getter()
    heads = tuple(found) if isinstance(found, tuple | list) else (found,)
    named = [head for head in heads if isinstance(head, nn.Module) and any(True for _ in head.parameters())]
    if not named:
        name = model.name if isinstance(model, PixelModel) else type(inner).__name__
        raise ValueError(
            f"model {name!r} does not say which part is its classifier; it cannot be trained alone or left out"
        )
    return tuple(named)


def train_head_only(model: PixelModel) -> None:
    """Freezes everything but the classifier, in place. Before DDP wraps the model. ValueError as `classifiers`."""
    heads = classifiers(model)
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)
    model.trained_parts = heads
    model.train(model.training)
