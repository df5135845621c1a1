"""What makes a robust accuracy less than it seems: a look at the model before the attack, and at the rows behind it."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bits.checkpoint import write_atomic
from data.loader import eval_loader
from engine.evaluate import Evaluator
from engine.ledger import read_ledger
from robust.diagnosis import SQUARE_GAIN, SURE, diagnose


def first_look(evaluator: Evaluator, identity: str, keys: NDArray[np.int64], num_images: int) -> None:
    """Symptoms of the model on the images of `keys`, kept beside the ledger; nothing where they are there."""
    path = _path(evaluator.ledger, identity)
    if path.exists():
        return
    (batch,) = eval_loader(
        evaluator.index,
        keys=keys,
        global_batch=num_images,
        rank=0,
        world_size=1,
        image_size=evaluator.image_size,
        resize=evaluator.transform,
        num_workers=0,
        seed=evaluator.seed,
        on_bad=(lambda bad: None) if evaluator.bad == "wrong" else None,
    )
    fed = evaluator.env.feed({"image": batch.image, "label": batch.label.clamp(min=0)})
    found = diagnose(evaluator.model, fed["image"].float() / 255.0, fed["label"])
    evaluator.env.cut()
    write_atomic(path, json.dumps(found.notes).encode())


def notes_of_rows(ledger: Path, identity: str) -> list[str]:
    """The first look's notes, and what the verdicts themselves say against the number; a line each."""
    path = _path(ledger, identity)
    notes = list(json.loads(path.read_bytes())) if path.exists() else []
    broken = [row for row in read_ledger(ledger, identity).rows(identity) if row.broken_by is not None]
    num_images = len(read_ledger(ledger, identity).done(identity, "clean"))
    by_queries = sum(row.broken_by == "square" for row in broken)
    if by_queries > SQUARE_GAIN * num_images:
        notes.append(
            f"square, which sees no gradient, broke {by_queries} of {num_images} images that the attacks by gradients "
            "had left: gradients are masked, and the true robust accuracy is lower"
        )
    margins = torch.tensor([row.margin for row in broken])
    if nan := int(margins.isnan().sum()):
        notes.append(f"{nan} images end in logits that are NaN; they count as wrong")
    if close := int((margins.abs() < SURE).sum()):
        notes.append(
            f"{close} verdicts hang on a margin below {SURE:g}: another machine may see them otherwise"
        )
    return notes


def _path(ledger: Path, identity: str) -> Path:
    return ledger / f"notes-{identity}.json"
