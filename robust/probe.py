"""A short attack before the long one: do seeds matter, and do more steps break more? Symptoms of a poor gradient.

After Carlini et al. 2019 (arXiv:1902.06705), section 5.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Norm
from robust.noise import noise
from robust.pgd import PGD, no_cut
from robust.threat import THREATS

STEPS, MORE_STEPS = 10, 50
SEEDS = 3
SPREAD = 0.02  # of the accuracies of three seeds on so few images: more is worth a word


class Probe(NamedTuple):
    """PGD on N images, the last iterate of each; counts of images that stay right."""

    num_images: int
    right: tuple[int, ...]  # after STEPS steps, by seed
    undecided: int  # images that one seed breaks and another does not
    right_after_more: int  # after MORE_STEPS steps of the first seed

    @property
    def seed_spread(self) -> float:
        """Largest less smallest accuracy over seeds."""
        return (max(self.right) - min(self.right)) / self.num_images

    @property
    def more_is_weaker(self) -> bool:
        """More steps left more images right, by more than one."""
        return self.right_after_more > self.right[0] + 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What this says against the gradients, in words."""
        notes = []
        if self.more_is_weaker:
            notes.append(
                f"PGD with {MORE_STEPS} steps left {self.right_after_more} of {self.num_images} images right and with "
                f"{STEPS} steps {self.right[0]}: more steps are not stronger, so its gradients lead astray"
            )
        if max(self.right) - min(self.right) > max(1.0, SPREAD * self.num_images):  # one image is no sign
            notes.append(
                f"PGD-{STEPS} by {len(self.right)} seeds left {min(self.right)} to {max(self.right)} of "
                f"{self.num_images} images right: the start matters, and restarts would lower the number"
            )
        return tuple(notes)


def probe(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: Tensor,
    norm: Norm,
    keys: Tensor,
    cut: Callable[[], None] = no_cut,
) -> Probe:
    """Of images (N,3,H,W) in [0,1] with streams `keys` int64 [N]: SEEDS * STEPS + MORE_STEPS forward and backward
    passes and a few forward ones."""
    right = [
        _right(predict, image, label, STEPS, eps=eps, norm=norm, seed=keys + number, cut=cut)
        for number in range(SEEDS)
    ]
    more = _right(predict, image, label, MORE_STEPS, eps=eps, norm=norm, seed=keys, cut=cut)
    together = torch.stack(right)
    undecided = together.any(dim=0) & ~together.all(dim=0)
    return Probe(
        num_images=len(image),
        right=tuple(int(part.sum()) for part in right),
        undecided=int(undecided.sum()),
        right_after_more=int(more.sum()),
    )


def _right(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    steps: int,
    *,
    eps: Tensor,
    norm: Norm,
    seed: Tensor,
    cut: Callable[[], None],
) -> Tensor:
    """bool [N] on the host."""
    pgd = PGD(steps=steps, step_size=eps / 4.0, noise=noise, threat=THREATS[norm], cut=cut)
    attacked = pgd(predict, image, label, eps=eps, seed=seed)
    cut()
    with torch.no_grad():
        logits = predict(attacked).float()
    cut()
    return logits.cpu().argmax(dim=1) == label.cpu()
