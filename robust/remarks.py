"""What a robust accuracy has against it: symptoms of the model before the attack, and the answers themselves."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from robust.diagnosis import SQUARE_GAIN, SURE
from robust.gradient import Predict
from robust.lanes import Norm
from robust.probe import probe
from robust.stream import question_seed


def of_short_attacks(
    predict: Predict,
    image: Tensor,
    label: Tensor,
    *,
    eps: float,
    norm: Norm,
    keys: Sequence[int],
    seed: int,
    cut: Callable[[], None],
) -> tuple[str, ...]:
    """Whether seeds and steps of PGD matter: about 80 forward and backward passes over the images."""
    streams = [question_seed(seed, key, "probe", 0) for key in keys[: len(image)]]
    found = probe(
        predict,
        image,
        label,
        eps=torch.tensor(eps, device=image.device),
        norm=norm,
        keys=torch.tensor(streams, device=image.device),
        cut=cut,
    )
    return found.notes


def of_answers(
    broken_by: Sequence[str | None], flags: Mapping[str, Tensor], *, limit: float
) -> tuple[str, ...]:
    """What the answers themselves say against the number; `limit` is how far an image may lie from its original."""
    num, notes = len(broken_by), []
    by_queries = sum(name == "square" for name in broken_by)
    if by_queries > SQUARE_GAIN * num:
        notes.append(
            f"square, which sees no gradient, broke {by_queries} of {num} images that the attacks by gradients had "
            "left: gradients are masked, and the true robust accuracy is lower"
        )
    if flipped := int(flags["flipped"].sum()):
        notes.append(f"{flipped} verdicts changed with the batch that the image was judged in")
    if nan := int(flags["margin"].isnan().sum()):
        notes.append(f"{nan} images end in logits that are NaN; they count as wrong")
    if close := int((flags["margin"].abs() < SURE).sum()):
        notes.append(
            f"{close} verdicts hang on a margin below {SURE:g}: another machine may see them otherwise"
        )
    if (worst := float(flags["distance"].max())) > limit:
        notes.append(f"an image lies {worst:g} from its original, beyond eps: the attack is broken")
    return tuple(notes)
