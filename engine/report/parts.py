"""A result of a suite with parts against the ledger: each part's rows, and their sums."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from engine.ledger import Counts, read_ledger
from engine.rows import CLEAN


def parts_summary(folder: Path, parts: Mapping[str, Mapping[str, JsonValue]], *, evaluation: str) -> Counts:
    """The sums over the rows of all parts. ValueError where ledger and result contradict each other."""
    ids = [str(part.get("evaluation")) for part in parts.values()]
    if hashlib.sha256("\n".join(ids).encode()).hexdigest()[: len(evaluation)] != evaluation:
        raise ValueError("its parts are not those of its evaluation id")
    images = correct = top5 = 0
    for name, identity in zip(parts, ids, strict=True):
        book = read_ledger(folder, identity)
        found = book.summary(identity)["components"][CLEAN]
        book.close()
        told = tuple(parts[name].get(key) for key in ("num_images", "num_correct", "num_top5"))
        counted = (found["num_images"], found["num_correct"], found["num_top5"])
        if told != counted:
            raise ValueError(
                f"it says {told} of {name}, the ledger's rows say {counted} (images, right, top-5)"
            )
        images, correct, top5 = images + counted[0], correct + counted[1], top5 + counted[2]
    return Counts(
        num_images=images, num_correct=correct, num_top5=top5, top1=correct / images, top5=top5 / images
    )
