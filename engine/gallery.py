"""A few images of an evaluation, as they went into the model and as the attack left them: pictures for the report.

The same scans are chosen in every suite whose string keys agree, whatever the model, so that pages of several
runs show the same images.
"""

import heapq
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bits.checkpoint import write_atomic
from data.index import DatasetIndex
from data.order import hash64
from engine.eval_fields import AttackEval, SuiteEval
from engine.evaluate import Evaluator


def store_gallery(
    evaluator: Evaluator, entry: SuiteEval | AttackEval, path: Path, *, num_images: int, evaluation: str
) -> None:
    """Writes `num_images` images of the evaluation to `path` (safetensors), unless they are there already.

    `image` uint8 [n,3,H,W] before the attack and, for an attack, `attacked` float32 [n,3,H,W]; metadata:
    `evaluation` (id) and `names` (JSON list of string keys). All ranks take part, rank 0 writes.
    """
    env = evaluator.env
    if env.agree(int(is_stored(path, evaluation))) or num_images == 0:
        return
    keys = choose(evaluator.index, evaluator.keys(entry), num_images)
    found = evaluator.pictures(entry, keys)
    if env.rank == 0:
        write_gallery(path, evaluator.index, keys, found, evaluation)
    env.barrier()


def choose(index: DatasetIndex, keys: np.ndarray, num_images: int) -> np.ndarray:
    """The `num_images` of `keys` whose names have the smallest hashes, in that order."""
    hashed = ((int(hash64("gallery", index.name(int(key)))), int(key)) for key in keys)
    return np.array([key for _, key in heapq.nsmallest(num_images, hashed)], dtype=np.int64)


def is_stored(path: Path, evaluation: str) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return bool((file.metadata() or {}).get("evaluation") == evaluation)
    except (OSError, SafetensorError):
        return False


def write_gallery(
    path: Path, index: DatasetIndex, keys: np.ndarray, found: dict[str, Tensor], evaluation: str
) -> None:
    place = {int(key): row for row, key in enumerate(found["key"].tolist()) if key >= 0}
    rows = torch.tensor([place[int(key)] for key in keys])
    names = json.dumps([index.name(int(key)) for key in keys])
    tensors = {name: found[name][rows].contiguous() for name in ("image", "attacked") if name in found}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, {"evaluation": evaluation, "names": names}))
