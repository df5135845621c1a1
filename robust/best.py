"""The strongest iterate an attack has met, image by image: how one iterate is judged against another."""

from typing import NamedTuple

import torch
from torch import Tensor


class Best(NamedTuple):
    """Tensors of fixed shape, so that it can be part of an attack's state."""

    image: Tensor  # (N,3,H,W)
    wrong: Tensor  # bool [N]: the model errs on it
    loss: Tensor  # float32 at least, [N]; -inf while nothing was judged


def unjudged(image: Tensor) -> Best:
    """`image` (N,3,H,W), which every judged iterate beats."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    return Best(
        image=image.clone(),  # not the iterate itself: on XLA one tensor in two places makes a graph of its own
        wrong=torch.zeros(image.shape[0], dtype=torch.bool, device=image.device),
        loss=torch.full((image.shape[0],), -torch.inf, dtype=dtype, device=image.device),
    )


def stronger(best: Best, image: Tensor, logits: Tensor, target: Tensor, loss: Tensor) -> Best:
    """Per image the better of `best` and `image`, which has these `logits` (N,K) and `loss` [N].

    A misclassified image beats one that is classified right; between two of a kind the higher loss wins, and
    the earlier one where losses are equal or NaN. Soft targets (N,K) count by their largest class.
    """
    label = target.argmax(1) if target.is_floating_point() else target
    wrong, loss = logits.argmax(1) != label, loss.to(best.loss.dtype)
    wins = (wrong & ~best.wrong) | ((wrong == best.wrong) & (loss > best.loss))
    return Best(
        image=torch.where(wins.view([-1] + [1] * (image.dim() - 1)), image, best.image),
        wrong=wrong | best.wrong,
        loss=torch.where(wins, loss, best.loss),
    )
