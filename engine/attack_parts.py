"""A folder that `attack` has written, as a part of an evaluation that is to be joined with others."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bits.checkpoint import write_atomic
from engine.adversarial_store import NAME, stored_names
from engine.folder import RunFolder
from engine.ledger import Ledger, Verdict, read_ledger

_SHOWN = ("weights_sha256", "suite", "contract", "seed", "precision", "components")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackPart:
    """The AutoAttack evaluations in the ledger of `folder`."""

    folder: Path
    ledger: Ledger
    evaluations: Mapping[str, Mapping[str, Any]]  # id -> what the ledger says of it

    def rows(self, identity: str) -> Iterator[Verdict]:
        return self.ledger.rows(identity)

    def files(self, identity: str) -> list[Path]:
        """What lies beside the ledger's rows."""
        place = RunFolder(self.folder).ledger
        found = [*place.glob(f"facts-{identity}.json"), *place.glob(f"checks-{identity}-*.jsonl")]
        return sorted([*found, *place.glob(f"pictures-{identity}/*.npy")])

    def stored(self, identity: str) -> list[Path]:
        """Files with the images that broke the originals."""
        name = f"{self.evaluations[identity]['name']}-{identity[:8]}"
        return sorted((self.folder / "adversarial" / name).glob("block-*.safetensors"))

    def broken(self, identity: str) -> set[str]:
        return {row.key for row in self.rows(identity) if row.broken_by is not None}

    def join_stored(self, name: Path, others: Sequence["AttackPart"], identity: str, place: Path) -> None:
        """The block's file `name` of this part and of `others`: of each image the one of who broke it."""
        names = stored_names(self.folder / name)
        image = np.array(load_file(self.folder / name)[NAME])
        own = self.broken(identity)
        for other in others:
            if stored_names(other.folder / name) != names:
                raise ValueError(
                    f"{other.folder / name} has other images than {self.folder / name}; join whole parts"
                )
            theirs = load_file(other.folder / name)[NAME]
            new = other.broken(identity) - own
            rows = [row for row, key in enumerate(names) if key in new]
            image[rows] = theirs[rows]
            own |= new
        place.parent.mkdir(parents=True, exist_ok=True)
        facts = {"evaluation": identity, "names": json.dumps(names)}
        write_atomic(place, save({NAME: image}, facts))


def read_parts(folders: Sequence[Path]) -> list[AttackPart]:
    """ValueError for a folder that no attack has written, or that is given twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (first := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise ValueError(
                f"part {folder} is given twice{'' if first == folder else f' (as {first})'}; drop one"
            )
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> AttackPart:
    place = RunFolder(folder).ledger
    if not place.is_dir():
        raise ValueError(f"{folder} has no ledger; give folders that `attack` has written (--output)")
    ledger = read_ledger(place)
    found = {
        identity: about
        for identity, about in ledger.evaluations().items()
        # With until_ci it ends by itself, and has no parts.
        if isinstance(attack := about.get("attack"), dict)
        and attack.get("attack") == "autoattack"
        and "until_ci" not in attack
    }
    if not found:
        raise ValueError(
            f"{folder} has no evaluation by AutoAttack that could be a part; give folders that `attack` has written"
        )
    return AttackPart(folder=folder, ledger=ledger, evaluations=found)


def refuse_strangers(parts: Sequence[AttackPart]) -> None:
    """ValueError unless all parts have the same evaluations: same weights, images, attack, seed."""
    first = parts[0]
    for part in parts[1:]:
        for one, other in ((first, part), (part, first)):
            if strange := [identity for identity in one.evaluations if identity not in other.evaluations]:
                raise ValueError(_difference(one, other, strange[0]))


def _difference(one: AttackPart, other: AttackPart, identity: str) -> str:
    """In one line; `identity` is in `one` alone."""
    about = one.evaluations[identity]
    alike = [there for there in other.evaluations.values() if there["name"] == about["name"]]
    start = f"{one.folder} and {other.folder} are not parts of one evaluation: "
    if not alike:
        return start + f"{about['name']} is in the first alone; join what was attacked by the same words"
    mine, theirs = _flat(about), _flat(alike[0])
    name = next(name for name in mine if mine[name] != theirs.get(name))
    return (
        start
        + f"{name} is {mine[name]} in the one and {theirs.get(name)} in the other; attack with the same words"
    )


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: about[name] for name in _SHOWN} | {
        f"attack.{name}": value for name, value in about["attack"].items()
    }
