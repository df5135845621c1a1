"""Verdicts on a batch of logits, and the id of the evaluation they belong to: the step before the ledger."""

import hashlib
import json
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

Plain = Mapping[str, object]  # of numbers, text, true, false, None, lists and mappings of these


SCORES: Final = ("margin", "confidence", "nll", "brier")  # numbers of a ledger row; see engine.ledger_file


class Judged(NamedTuple):
    """Verdicts on N images, on the device of the logits."""

    prediction: Tensor  # int64 [N]
    correct: Tensor  # bool [N]
    top5: Tensor  # bool [N]; with fewer than five classes all of them are in
    scores: Tensor  # float32 [N,4]: the columns of SCORES in one tensor, so that the host reads it at once

    @property
    def margin(self) -> Tensor:
        """float32 [N]: logit of the label minus the best other logit; negative when wrong."""
        return self.scores[:, SCORES.index("margin")]


def judge(logits: Tensor, label: Tensor) -> Judged:
    """logits [N,K] and label int64 [N] to verdicts; rows whose label is -1 (padding) hold no meaning.

    Logits with a nan are wrong, whatever their largest entry is. Static shapes, no host read.
    """
    shape = tuple(logits.shape)
    assert len(shape) == 2, f"logits of shape {shape}, not [N, K]"
    assert shape[1] >= 2, f"{shape[1]} class: nothing to tell apart"
    logits, index = logits.float(), label.clamp(min=0)[:, None]
    is_number = ~logits.isnan().any(dim=1)
    prediction = logits.argmax(dim=1)
    correct = (prediction == label) & is_number
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    # Ties: topk may leave out what argmax chose.
    top5 = ((best == label[:, None]).any(dim=1) & is_number) | correct
    classes = torch.arange(logits.shape[1], device=logits.device)
    others = torch.where(classes == index, float("-inf"), logits).amax(dim=1)
    margin = logits.gather(1, index)[:, 0] - others
    log_probability = logits.log_softmax(dim=1)
    probability = log_probability.exp()
    confidence = probability.gather(1, prediction[:, None])[:, 0]
    nll = -log_probability.gather(1, index)[:, 0]
    brier = torch.where(classes == index, probability - 1, probability).square().sum(dim=1)
    return Judged(prediction, correct, top5, torch.stack((margin, confidence, nll, brier), dim=1))


def evaluation_id(
    *, weights_sha256: str, suite: str, contract: str, attack: Plain | None, seed: int, precision: str
) -> str:
    """32 hex digits that two evaluations share only where every verdict of theirs must be the same."""
    parts = {
        "weights_sha256": weights_sha256,
        "suite": suite,
        "contract": contract,
        "attack": attack,
        "seed": seed,
        "precision": precision,
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def weights_hash(state_dict: Mapping[str, Tensor]) -> str:
    """sha256 (64 hex digits) over sorted names, dtypes, shapes and bytes; equal on every device.

    Reads every tensor on the host: once per evaluation, outside any step.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        # As JSON the header says where it ends: no two state dicts run into the same bytes.
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # By bytes, for numpy has no bfloat16; flat first, for a 0-dim tensor has no view.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
