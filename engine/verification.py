"""Stored adversarial images judged once more: by the model as it is, in float32, in two batch sizes, and in 8 bits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from data.loader import eval_loader
from engine.adversarial_store import NAME, stored_names
from engine.attack_checks import as_uint8
from engine.evaluate import Evaluator
from engine.ledger import Verdict
from robust.precision import exact_float32
from robust.stage import Device
from robust.threat import distance, slack
from robust.verdicts import judge


@dataclass(slots=True, kw_only=True)
class Verification:
    """Counts over the stored images of one evaluation, and names of those that are not as the ledger says."""

    evaluation: str
    name: str
    num_images: int = 0
    num_broken: int = 0  # by an attack, as the ledger says; the others are stored as they were
    outside_ball: list[str] = field(default_factory=list)
    outside_box: list[str] = field(default_factory=list)  # not in [0, 1], or no number
    right_again: list[str] = field(default_factory=list)  # the ledger says broken, the model says right
    wrong_now: list[str] = field(default_factory=list)  # the other way round
    flips: list[str] = field(default_factory=list)  # two batch sizes disagree
    right_as_uint8: list[str] = field(default_factory=list)  # broken, but not when it is rounded to 8 bits
    largest_distance: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether anything is not as the ledger says, or no image that the attack may give."""
        return bool(self.outside_ball or self.outside_box or self.right_again or self.wrong_now)

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"differs": self.differs}

    def __str__(self) -> str:
        said = (
            f"{self.name:<20} {self.num_broken} of {self.num_images} images are broken; "
            f"{len(self.right_again)} of these are right now, {len(self.wrong_now)} others wrong; "
            f"{len(self.outside_ball)} outside the ball, {len(self.outside_box)} outside [0, 1]; "
            f"{len(self.flips)} flip with the batch size; {len(self.right_as_uint8)} are right as 8 bits"
        )
        return said if self.differs else f"{said}: as the ledger says"


def verify(
    evaluator: Evaluator,
    about: Mapping[str, Any],
    identity: str,
    blocks: Sequence[Path],
    rows: Sequence[Verdict],
    batch: int,
) -> Verification:
    """Of the files `blocks`; `rows` are the evaluation's in the ledger, `about` is what it says of it."""
    found = Verification(evaluation=identity, name=about["name"])
    broken: dict[str, bool] = {}  # or wrong from the start
    for row in rows:
        broken[row.key] = broken.get(row.key, False) or not row.correct
    by_attack = {row.key for row in rows if row.broken_by is not None}
    position = {row.key: row.position for row in rows}
    was_training = evaluator.model.training
    evaluator.model.eval()
    try:
        with exact_float32():
            for path in blocks:
                names = stored_names(path)
                _verify_block(evaluator, about, found, path, names, position, broken, by_attack, batch)
    finally:
        evaluator.model.train(was_training)
    return found


def _verify_block(
    evaluator: Evaluator,
    about: Mapping[str, Any],
    found: Verification,
    path: Path,
    names: Sequence[str],
    position: Mapping[str, int],
    broken: Mapping[str, bool],
    by_attack: set[str],
    batch: int,
) -> None:
    if unknown := [name for name in names if name not in position]:
        raise ValueError(
            f"{path} has the image {unknown[0]}, on which the ledger has no verdict; attack to the end"
        )
    attacked = torch.from_numpy(load_file(path)[NAME])
    clean, label = _originals(evaluator, names, position, path)
    env, (norm, eps) = evaluator.env, (about["attack"]["norm"], about["attack"]["eps"])
    feed = partial(_feed, evaluator)
    device, rows = Device(feed=feed, cut=env.cut, compiles=env.compiles), range(len(names))
    image, goal = feed(attacked), feed(label)
    verdicts = [
        judge(evaluator.model, part, goal, rows, batch=size, device=device).wrong.tolist()
        for part, size in ((image, batch), (image, batch // 2 or 2), (as_uint8(image), batch))
    ]
    length = distance(attacked, clean, norm)
    limit = eps + slack(norm, eps, attacked.shape[1:])
    is_inside = ((attacked >= 0.0) & (attacked <= 1.0)).flatten(1).all(dim=1).tolist()
    for row, name in enumerate(names):
        wrong, again, rounded = (part[row] for part in verdicts)
        found.num_images += 1
        found.num_broken += name in by_attack
        _note(found.outside_ball, name, not float(length[row]) <= limit)
        _note(found.outside_box, name, not is_inside[row])
        _note(found.right_again, name, broken[name] and not wrong)
        _note(found.wrong_now, name, wrong and not broken[name])
        _note(found.flips, name, wrong != again)
        _note(found.right_as_uint8, name, name in by_attack and wrong and not rounded)
    found.largest_distance = max(found.largest_distance, float(length.max()))


def _note(names: list[str], name: str, is_so: bool) -> None:
    if is_so:
        names.append(name)


def _originals(
    evaluator: Evaluator, names: Sequence[str], position: Mapping[str, int], path: Path
) -> tuple[Tensor, Tensor]:
    """float32 (M,3,H,W) in [0,1] and labels [M] in the order of `names`."""
    index = evaluator.index
    for name in names:
        if position[name] >= index.num_samples or index.name(position[name]) != name:
            raise ValueError(
                f"the shards do not have {name} of {path.name} in its place; give those of the attack"
            )
    keys = np.array([position[name] for name in names], dtype=np.int64)
    (batch,) = _batches(evaluator, keys)
    place = {int(key): row for row, key in enumerate(batch.key.tolist())}
    order = torch.tensor([place[int(key)] for key in keys])
    return batch.image[order].float() / 255.0, batch.label[order]


def _batches(evaluator: Evaluator, keys: np.ndarray) -> Iterator[Any]:
    return iter(
        eval_loader(
            evaluator.index,
            keys=keys,
            global_batch=len(keys),
            rank=0,
            world_size=1,
            image_size=evaluator.image_size,
            resize=evaluator.transform,
            num_workers=0,
            seed=evaluator.seed,
        )
    )


def _feed(evaluator: Evaluator, tensor: Tensor) -> Tensor:
    return evaluator.env.feed({"images": tensor}, split=False)["images"]
