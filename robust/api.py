"""Single attacks on anybody's model, with the contract, the verdicts and the result of `robust.autoattack`.

All take float images (N,3,H,W) in [0,1] and labels int64 [N], any N, on any device, and `predict` from images to logits
in eval mode. `keys`, `lanes`, `block`, `chunk`, `device` and `cut` are those of `autoattack`. Hooks:

- a loss of your own: `apgd(..., loss=function)`, (logits (N,K), label [N], target [N]) -> one number per image,
  which is ascended; `pgd(..., loss=function)`, (logits, label) -> one number per image;
- a model whose answers are random: `eot=20` averages so many gradients at each point (`apgd`, `autoattack`'s version
  rand);
- a model with a step that has no useful gradient: `robust.bpda` puts another one into its backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from robust.apgd import Apgd
from robust.apgd_l1 import ApgdL1
from robust.attack_losses import LEAST_CLASSES, AttackLoss, LossName
from robust.autoattack import attack
from robust.checks import check_norm
from robust.fab import Fab
from robust.fab_untargeted import FabUntargeted
from robust.gradient import Predict
from robust.lanes import Component, Norm
from robust.pgd import no_cut
from robust.result import AttackResult
from robust.threat import NORMS
from robust.versions import NUM_TARGETS, Part, Version, square_of


class Running(TypedDict):
    """How an attack is run, see `robust.autoattack.autoattack`."""

    seed: NotRequired[int]
    keys: NotRequired[Sequence[int] | None]
    lanes: NotRequired[int]
    block: NotRequired[int]
    chunk: NotRequired[int]
    device: NotRequired[torch.device | str | None]
    cut: NotRequired[Callable[[], None]]


def apgd(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    loss: LossName | AttackLoss = "ce",
    iterations: int = 100,
    restarts: int = 1,
    targets: int = NUM_TARGETS,
    eot: int = 1,
    **running: Unpack[Running],
) -> AttackResult:
    """Auto-PGD (robust/apgd.py; l1: robust/apgd_l1.py). A targeted loss is tried on the `targets` likeliest other
    classes, any other from `restarts` random starts. ValueError where the model has too few classes for the loss."""
    check_norm(norm, NORMS)
    component: Component = ApgdL1(loss=loss, iterations=iterations, eot=eot)
    if norm != "l1":
        component = Apgd(loss=loss, norm=norm, iterations=iterations, eot=eot)
    is_targeted = isinstance(loss, str) and loss.endswith("-targeted")

    def version(num_classes: int) -> Version:
        if isinstance(loss, str) and num_classes < LEAST_CLASSES[loss]:
            raise ValueError(
                f"loss {loss} needs {LEAST_CLASSES[loss]} classes and the model has {num_classes}; use margin"
                f"{'-targeted' * is_targeted}"
            )
        return _alone(
            component,
            targets=min(targets, num_classes - 1) if is_targeted else 0,
            restarts=restarts,
        )

    return attack(predict, image, label, version, eps=eps, norm=norm, **_filled(running))


def fab(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    iterations: int = 100,
    targets: int = NUM_TARGETS,
    restarts: int = 1,
    **running: Unpack[Running],
) -> AttackResult:
    """FAB (robust/fab.py) on the `targets` likeliest other classes; with `targets` 0 towards the nearest of all
    boundaries (robust/fab_untargeted.py), the first of `restarts` tries from the clean image."""
    check_norm(norm, NORMS)

    def version(num_classes: int) -> Version:
        if targets > 0:
            targeted = Fab(norm=norm, iterations=iterations)
            return _alone(targeted, targets=min(targets, num_classes - 1), restarts=1)
        component = FabUntargeted(num_classes=num_classes, norm=norm, iterations=iterations)
        once = _alone(component, targets=0, restarts=1)
        if restarts == 1:
            return once
        more = _alone(replace(component, random_start=True), targets=0, restarts=restarts - 1)
        return Version(id=f"fab-{restarts}-restarts", parts=once.parts + more.parts)

    return attack(predict, image, label, version, eps=eps, norm=norm, **_filled(running))


def square(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    queries: int = 5000,
    p_init: float = 0.8,
    rescale: bool = False,
    restarts: int = 1,
    **running: Unpack[Running],
) -> AttackResult:
    """Square Attack (robust/square.py, square_l2.py, square_l1.py): asks for logits alone, so needs no gradient."""
    check_norm(norm, NORMS)
    component = square_of(norm, queries=queries, p_init=p_init, rescale=rescale)
    return attack(
        predict,
        image,
        label,
        lambda num_classes: _alone(component, targets=0, restarts=restarts),
        eps=eps,
        norm=norm,
        **_filled(running),
    )


def _alone(component: Component, *, targets: int, restarts: int) -> Version:
    if restarts < 1 or targets < 0:
        raise ValueError(
            f"{restarts} restarts and {targets} targets; use 1 or more restarts, 0 or more targets"
        )
    tries = f"-{targets}-targets" if targets else f"-{restarts}-restarts" if restarts > 1 else ""
    part = Part(component=component, targets=targets, restarts=restarts)
    return Version(id=component.name + tries, parts=(part,))


class _Run(TypedDict):
    seed: int
    keys: Sequence[int] | None
    lanes: int
    block: int
    chunk: int
    device: torch.device | str | None
    cut: Callable[[], None]


def _filled(running: Running) -> _Run:
    """With the defaults of `autoattack`."""
    return {
        "seed": running.get("seed", 0),
        "keys": running.get("keys"),
        "lanes": running.get("lanes", 64),
        "block": running.get("block", 512),
        "chunk": running.get("chunk", 10),
        "device": running.get("device"),
        "cut": running.get("cut", no_cut),
    }
