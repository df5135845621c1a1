"""Verdicts on attacked images: by the user's own model, in float32, in batches of one shape."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Norm
from robust.stage import Device
from robust.threat import distance, slack


class Verdict(NamedTuple):
    """What the model says of M images, on the host."""

    logits: Tensor  # float32 (M,K)
    prediction: Tensor  # int64 [M]; -1 where a logit is NaN
    margin: Tensor  # float32 [M]: the label's logit minus the best other one; negative where wrong, NaN if a logit is
    rank: Tensor  # int64 [M]: how many classes are likelier than the label; all of them where a logit is NaN

    @property
    def wrong(self) -> Tensor:
        """bool [M]. Logits with a NaN are wrong: nothing can be built on such a prediction."""
        return ~(self.margin > 0.0)


def judge(
    predict: Predict, image: Tensor, label: Tensor, rows: Sequence[int], *, batch: int, device: Device
) -> Verdict:
    """The verdicts on `rows` of `image` (M,3,H,W), in the order of `rows`; the last batch is filled up.

    `predict` is the model as it is, in eval mode; its precision is the caller's promise (float32, highest).
    """
    if not rows:
        none = torch.zeros(0, dtype=torch.int64)
        return Verdict(torch.zeros(0, 0), none, torch.zeros(0), none)
    found = []
    for start in range(0, len(rows), batch):
        part = list(rows[start : start + batch])
        place = device.feed(torch.tensor(part + [part[-1]] * (batch - len(part))))
        with torch.no_grad():
            logits = predict(image.index_select(0, place)).float()
        device.cut()
        found.append(logits[: len(part)] if len(part) == batch else logits.cpu()[: len(part)])
    logits = torch.cat([part.cpu() for part in found])
    return verdict_of(logits, label.cpu()[torch.tensor(list(rows))])


def lies_inside(
    image: Tensor,
    clean: Tensor,
    rows: Sequence[int],
    *,
    eps: float,
    norm: Norm,
    batch: int,
    device: Device,
) -> Tensor:
    """bool [M] on the host: `rows` of `image` lie in the eps-ball around those of `clean`, within rounding, and in
    [0, 1]. False for what is not a number: a break that is not an image proves nothing."""
    limit, found = eps + slack(norm, eps, image.shape[1:]), []
    for start in range(0, len(rows), batch):
        part = list(rows[start : start + batch])
        place = device.feed(torch.tensor(part + [part[-1]] * (batch - len(part))))
        one, other = image.index_select(0, place), clean.index_select(0, place)
        flat = one.flatten(1)
        inside = (distance(one, other, norm) <= limit) & (flat.amin(dim=1) >= 0.0) & (flat.amax(dim=1) <= 1.0)
        device.cut()
        found.append(inside.cpu()[: len(part)])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def verdict_of(logits: Tensor, label: Tensor) -> Verdict:
    """logits (M,K) and label int64 [M], both on the host."""
    is_number = ~logits.isnan().any(dim=1)
    prediction = torch.where(is_number, logits.argmax(dim=1), -1)
    own = logits.gather(1, label[:, None])[:, 0]
    others = logits.scatter(1, label[:, None], float("-inf")).amax(dim=1)
    # A tie is decided by argmax, as everywhere: the margin 0 then belongs to the side that it took.
    margin = torch.where(is_number, own - others, torch.nan)
    tie = torch.finfo(torch.float32).tiny
    margin = torch.where((margin == 0.0) & (prediction == label), torch.full_like(margin, tie), margin)
    rank = torch.where(is_number, (logits > own[:, None]).sum(dim=1), logits.shape[1])
    return Verdict(logits, prediction, margin, rank)
