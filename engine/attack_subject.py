"""Whose attack it was: the words that named the model, kept for `attack verify`, and the threat of its training."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bits.checkpoint import write_atomic
from engine.folder import RunFolder
from engine.subject import Subject
from models.hub import is_hub_name

FILE = "subject.json"
_WORDS = ("weights", "model", "image_size", "num_classes", "overrides", "data", "cache", "allow_pipes")


def keep_subject(target: RunFolder, arguments: argparse.Namespace, subject: Subject) -> None:
    """Beside the results."""
    run = str(arguments.run) if is_hub_name(str(arguments.run)) else str(arguments.run.resolve())
    facts = {"run": run} | {name: getattr(arguments, name) for name in _WORDS}
    if facts["data"] is not None and Path(str(facts["data"])).exists():
        facts["data"] = str(Path(str(facts["data"])).resolve())
    facts |= _trained_on(subject)
    write_atomic(target.root / FILE, (json.dumps(facts, indent=1) + "\n").encode())


def kept_subject(folder: Path) -> dict[str, Any]:
    """The words that `keep_subject` has kept in `folder`; ValueError where it has none that can be read."""
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_bytes())
        return {name: found[name] for name in ("run", *_WORDS)}
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no {FILE}, which `attack --save-images` leaves there; give the folder that it wrote"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder / FILE} cannot be read; attack again, or name the model with --run"
        ) from None


def threat_of(subject: Subject, result: Mapping[str, Any]) -> dict[str, Any]:
    """For an attack's result: what the model was attacked with in its training (None: nothing; absent: unknown), and
    whether that was in another norm."""
    return {} if result["attack"] is None else _compared(_trained_on(subject), result)


def kept_threat_of(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The same by what `keep_subject` has kept; nothing where that is not there."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return _compared({name: found[name] for name in ("trained_on",) if name in found}, result)


def _trained_on(subject: Subject) -> dict[str, Any]:
    if subject.is_foreign:
        return {}
    trained = subject.recipe.objective.attack
    return {"trained_on": None if trained is None else {"norm": trained.norm, "eps": trained.eps}}


def _compared(trained: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    if "trained_on" not in trained:
        return {}
    threat = trained["trained_on"]
    is_unseen = threat is not None and threat["norm"] != result["attack"]["norm"]
    return {**trained, "is_unseen_threat": is_unseen}
