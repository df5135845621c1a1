"""A second look at every image that an attack broke, kept beside the ledger: what the verdict alone does not say.

Distance from the original, the verdict of another batch size, and of the image rounded to 8 bits. A line of JSON for
each image, written before its row in the ledger, so that no row is without it; after a kill a line may come twice.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust.gradient import Predict
from robust.lanes import Norm
from robust.stage import Device
from robust.threat import distance
from robust.verdicts import judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Of one broken image."""

    key: str
    distance: float  # from the original, in the norm of the attack
    low: float  # the smallest pixel
    high: float
    margin_again: float  # in a batch of another size; NaN is stored as null
    wrong_as_uint8: bool

    @property
    def flips(self) -> bool:
        """Whether the other batch size says that the image is classified right."""
        return self.margin_again > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """The file of one process; all of them are read together."""

    folder: Path
    evaluation: str
    rank: int

    def add(self, checks: Sequence[Check]) -> None:
        lines = "".join(json.dumps(_plain(check)) + "\n" for check in checks)
        path = self.folder / f"checks-{self.evaluation}-{self.rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)


def read_checks(folder: Path, evaluation: str) -> dict[str, Check]:
    """By the images' names; the last line of an image counts, and a line that a kill has torn does not."""
    return {
        check.key: check
        for path in sorted(folder.glob(f"checks-{evaluation}-*.jsonl"))
        for check in _lines(path)
    }


def look_again(
    predict: Predict,
    adversarial: Tensor,
    clean: Tensor,
    label: Tensor,
    rows: Sequence[int],
    names: Sequence[str],
    *,
    norm: Norm,
    batch: int,
    device: Device,
) -> list[Check]:
    """Of `rows` of `adversarial` (M,3,H,W), judged before in batches of `batch`: two forward passes more."""
    found = []
    for start in range(0, len(rows), batch):
        part = list(rows[start : start + batch])
        place = device.feed(torch.tensor(part + [part[-1]] * (batch - len(part))))
        image, origin = adversarial.index_select(0, place), clean.index_select(0, place)
        own = label.index_select(0, place)
        flat, rounded = image.flatten(1), as_uint8(image)
        facts = torch.stack((distance(image, origin, norm), flat.amin(dim=1), flat.amax(dim=1)))
        device.cut()
        measured = facts.cpu().T.tolist()
        shape: dict[str, Any] = {"batch": batch // 2 or 2, "device": device}
        again = judge(predict, image, own, range(len(part)), **shape)
        in_8_bits = judge(predict, rounded, own, range(len(part)), **shape)
        found += [
            Check(
                key=names[row],
                distance=measured[slot][0],
                low=measured[slot][1],
                high=measured[slot][2],
                margin_again=float(again.margin[slot]),
                wrong_as_uint8=bool(in_8_bits.wrong[slot]),
            )
            for slot, row in enumerate(part)
        ]
    return found


def as_uint8(image: Tensor) -> Tensor:
    """`image` in [0,1] on the nearest of 256 levels, as float."""
    return (image * 255.0).round() / 255.0


def _plain(check: Check) -> Mapping[str, object]:
    values = asdict(check)
    return {name: None if value != value else value for name, value in values.items()}


def _lines(path: Path) -> Iterator[Check]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found: dict[str, Any] = json.loads(line)
            values: dict[str, Any] = {name: math.nan if v is None else v for name, v in found.items()}
            yield Check(**values)
        except (ValueError, TypeError):
            continue
