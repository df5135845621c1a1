"""What may be wrong with a robustness number before anything is attacked: symptoms of the model, in one line each.

After Carlini et al. 2019 (arXiv:1902.06705) and the checks of AutoAttack's own code: a robust accuracy is an upper
bound, and these are the usual reasons why it is a loose one.
"""

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
    is_random: bool
    zero_gradient: Tensor  # bool [N]: the gradients of cross-entropy and of DLR are zero at the clean image


def diagnose(predict: Predict, image: Tensor, label: Tensor) -> Diagnosis:
    """Looks at N images (N,3,H,W) in [0,1]: REPEATS + 3 forward and 2 backward passes, and host reads."""
    with torch.no_grad():
        first = predict(image).float()
        repeats = [predict(image).float() for _ in range(REPEATS - 1)]
        half = predict(image[: -(-len(image) // 2)]).float()
    notes = []
    is_random = any(_differs(first, other) for other in repeats)
    if is_random:
        notes.append(
            "the model's answers are random or have a memory: gradients and queries see another model each time; "
            "use version rand, whose gradients are averaged"
        )
    elif _differs(first[: len(half)], half):
        notes.append(
            "logits depend on the other images of the batch: verdicts hold for this batch alone; call model.eval(), "
            "or attack one image at a time"
        )
    if _is_probability(first):
        notes.append(
            "the model returns probabilities, not logits: cross-entropy of them hides gradients; return the "
            "logits before the softmax"
        )
    zero = _zero_gradient(predict, image, label, num_classes=first.shape[1])
    share = float(zero.double().mean())
    if share > 0.0:
        notes.append(
            f"{100 * share:.1f} % of the images have no gradient at all: attacks by gradients are blind there; a "
            "quantised, detached or saturated model needs one that is not"
        )
    return Diagnosis(tuple(notes), is_random, zero)


def _differs(one: Tensor, other: Tensor) -> bool:
    length = one.norm()
    return bool((one - other).norm() > RELATIVE * length + torch.finfo(one.dtype).tiny)


def _is_probability(logits: Tensor) -> bool:
    sums = logits.sum(dim=1)
    in_range = bool(((logits >= 0.0) & (logits <= 1.0)).all())
    return in_range and bool(((sums - 1.0).abs() < 1e-4).all())


def _zero_gradient(predict: Predict, image: Tensor, label: Tensor, *, num_classes: int) -> Tensor:
    zero = torch.ones(len(image), dtype=torch.bool, device=image.device)
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
        except ValueError:
            continue  # no path at all from the image to the loss
        zero &= (gradient == 0).flatten(1).all(dim=1)
    return zero
