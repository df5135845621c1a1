"""What may be wrong with a robustness number before anything is attacked: symptoms of the model, in one line each.

After Carlini et al. 2019 (arXiv:1902.06705) and the checks of AutoAttack's own code: a robust accuracy is an upper
bound, and these are the usual reasons why it is a loose one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from robust.attack_losses import LEAST_CLASSES, LOSSES, LossName
from robust.gradient import Predict, gradient_and_logits

REPEATS = 5
RELATIVE = 1e-4  # of the length of the logits: more than rounding
SURE = 1e-3  # a margin below it may fall either way on another machine
SQUARE_GAIN = 0.002  # of all images: an attack without gradients should add nothing


class Diagnosis(NamedTuple):
    """Symptoms on one batch."""

    notes: tuple[str, ...]
    is_random: bool  # or has a memory
    is_batch_dependent: bool
    is_probability: bool  # instead of logits
    zero_gradient: Tensor  # bool [N]: the gradients of all losses are zero at the clean image
    zero_share: Mapping[str, float]  # of each loss: the share of images where its gradient is zero


def diagnose(predict: Predict, image: Tensor, label: Tensor) -> Diagnosis:
    """Looks at N images (N,3,H,W) in [0,1]: REPEATS + 3 forward and 2 backward passes, and host reads."""
    with torch.no_grad():
        first = predict(image).float().cpu()
        repeats = [predict(image).float().cpu() for _ in range(REPEATS - 1)]
        half = predict(image[: -(-len(image) // 2)]).float().cpu()
    notes = []
    is_random = any(_differs(first, other) for other in repeats)
    is_batch_dependent = not is_random and _differs(first[: len(half)], half)
    if is_random:
        notes.append(
            "the model's answers are random or have a memory: gradients and queries see another model each time; "
            "use version rand, whose gradients are averaged"
        )
    if is_batch_dependent:
        notes.append(
            "logits depend on the other images of the batch: verdicts hold for this batch alone; call model.eval(), "
            "or attack one image at a time"
        )
    is_probability = _is_probability(first)
    if is_probability:
        notes.append(
            "the model returns probabilities, not logits: cross-entropy of them hides gradients; return the "
            "logits before the softmax"
        )
    by_loss = _zero_gradients(predict, image, label, num_classes=first.shape[1])
    zero = torch.stack(list(by_loss.values())).all(dim=0)
    share = float(zero.double().mean())
    if share > 0.0:
        notes.append(
            f"{100 * share:.1f} % of the images have no gradient at all: attacks by gradients are blind there; a "
            "quantised, detached or saturated model needs one that is not"
        )
    return Diagnosis(
        notes=tuple(notes),
        is_random=is_random,
        is_batch_dependent=is_batch_dependent,
        is_probability=is_probability,
        zero_gradient=zero,
        zero_share={name: float(part.double().mean()) for name, part in by_loss.items()},
    )


def _differs(one: Tensor, other: Tensor) -> bool:
    length = one.norm()
    return bool((one - other).norm() > RELATIVE * length + torch.finfo(one.dtype).tiny)


def _is_probability(logits: Tensor) -> bool:
    sums = logits.sum(dim=1)
    in_range = bool(((logits >= 0.0) & (logits <= 1.0)).all())
    return in_range and bool(((sums - 1.0).abs() < 1e-4).all())


def _zero_gradients(predict: Predict, image: Tensor, label: Tensor, *, num_classes: int) -> dict[str, Tensor]:
    """Of each loss that so many classes allow, bool [N] on the host."""
    zero: dict[str, Tensor] = {}
    names: tuple[LossName, ...] = ("ce", "dlr")
    for name in names:
        if num_classes < LEAST_CLASSES[name]:
            continue
        loss = LOSSES[name]
        try:
            gradient, _ = gradient_and_logits(
                predict,
                image,
                lambda logits: loss(logits, label, label).sum(),  # noqa: B023 used at once
            )
        except ValueError:  # no path at all from the image to the loss
            zero[name] = torch.ones(len(image), dtype=torch.bool)
            continue
        zero[name] = (gradient == 0).flatten(1).all(dim=1).cpu()
    return zero
