"""`weights`: what a weight file holds, any of them as safetensors, and a run's as one file that needs no run folder."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bits.checkpoint import CheckpointError, read_meta, write_atomic
from engine.card import card_path, model_card, read_measured
from engine.cli import Launch
from engine.convert import convert
from engine.exported import SUFFIX, describe_export
from engine.folder import RunFolder
from engine.subject import open_subject
from engine.verdict import weights_hash
from engine.words import short_list
from models.weight_export import to_safetensors
from models.weight_facts import describe_state, file_sha256
from models.weights import WeightFile, read_weights

Action = Callable[[argparse.Namespace], dict[str, Any]]


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Facts about the file that was read or written."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    actions: dict[str, tuple[Action, tuple[str, ...]]] = {
        "info": (_info, ("FILE",)),
        "convert": (_convert, ("SRC", f"DST{SUFFIX}")),
        "export": (_export, ("RUN", f"DST{SUFFIX}")),
    }
    action, names = actions[arguments.action]
    if len(arguments.paths) != len(names):
        raise ValueError(
            f"weights {arguments.action} takes {' '.join(names)}; {len(arguments.paths)} paths were given"
        )
    _check_flags(arguments)
    return action(arguments)


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags that do nothing: of `info` all, of `export` those that are about foreign files."""
    given = {"--trust-pickle": arguments.trust_pickle, "--model": arguments.model is not None}
    if arguments.action != "convert" and (
        flag := next((name for name, is_there in given.items() if is_there), None)
    ):
        raise ValueError(f"weights {arguments.action} does not use {flag}, which is for convert; drop it")


# ---- info


def _info(arguments: argparse.Namespace) -> dict[str, Any]:
    (path,) = arguments.paths
    found = read_weights(path)
    facts = describe_state(found.state)
    result: dict[str, Any] = {
        "file": str(path),
        "container": f"{found.container}, {found.layout}",
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "weights_sha256": weights_hash(found.state),
        **asdict(facts),
        "contents": dict(found.contents),
        **_own_facts(found),
        "metadata": dict(found.metadata),
    }
    for name, value in result.items():
        if value not in ({}, None, ()):
            print(f"{name:<15} {_shown(name, value)}")
    return result


def _own_facts(found: WeightFile) -> dict[str, Any]:
    """Model, classes, step and averaging of the toolkit's own files; empty for others."""
    if found.layout == "checkpoint of this toolkit":
        return _checkpoint_facts(found)
    if found.layout != "export of this toolkit":
        return {}
    facts = found.metadata
    return {
        "model": facts.get("model"),
        "step": facts.get("step"),
        "weights": facts.get("weights"),
        "num_classes": facts.get("num_classes"),
        "classes": facts.get("classes"),
    }


def _checkpoint_facts(found: WeightFile) -> dict[str, Any]:
    facts: dict[str, Any] = {"step": found.content["step"], "has_ema": "ema" in found.content}
    try:
        meta = read_meta(found.path)
        facts["classes"] = meta.facts.get("classes")
        facts["matches_json"] = (found.path.stat().st_size, file_sha256(found.path)) == (
            meta.size,
            meta.sha256,
        )
        facts["model"] = RunFolder(found.path.parent.parent).read_recipe().model.name
    except ValueError as error:  # a checkpoint by itself still has its tensors
        facts["note"] = str(error)
    return facts


def _shown(name: str, value: object) -> str:
    """One line of a value; long texts and lists are shortened, --json has them whole."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(name, entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return short_list([str(entry) for entry in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 72 else f"{text[:69]}..."


# ---- convert and export


def _convert(arguments: argparse.Namespace) -> dict[str, Any]:
    source, target = arguments.paths
    _check_target(target, force=arguments.force, has_card=False)
    return convert(source, target, arguments)


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    run_path, target = arguments.paths
    _check_target(target, force=arguments.force)
    if run_path.suffix == SUFFIX:
        raise ValueError(f"{run_path} is an export already; give a run folder or a checkpoint in one (.pt)")
    subject = open_subject(run_path, weights=arguments.weights)
    recipe, state, source = subject.recipe, subject.state, subject.output
    tensors = dict(state["model" if subject.weights == "raw" else "ema"])
    metadata = describe_export(
        recipe,
        tensors,
        classes=subject.classes,
        step=state["step"],
        weights=subject.weights,
        dataset_id=_dataset_id(source, state["step"], run_path),
    )
    measured = read_measured(source, metadata["weights_sha256"])
    card = model_card(recipe, describe_state(tensors), metadata, file_name=target.name, measured=measured)
    write_atomic(card_path(target), card.encode())
    write_atomic(target, to_safetensors(tensors, metadata))
    print(f"{target}: {arguments.weights} weights of step {state['step']}, {len(tensors)} tensors")
    print(f"{card_path(target)}: model card with {len(measured)} results; choose its license")
    return {"output": str(target), "card": str(card_path(target)), "results": len(measured), **metadata}


def _check_target(target: Path, *, force: bool, has_card: bool = True) -> None:
    if target.suffix != SUFFIX:
        raise ValueError(
            f"{target}: what is written is a {SUFFIX} file; name it {target.with_suffix(SUFFIX).name}"
        )
    if not target.parent.is_dir():
        raise ValueError(f"{target}: {target.parent} is no folder; make it, or give another path")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{target}: {target.parent} is not writable; give another path")
    for path in (target, card_path(target)) if has_card else (target,):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give another path")
        if path.exists() and not force:
            raise ValueError(f"{path} exists already; give another path, or --force to replace it")


def _dataset_id(source: RunFolder, step: int, path: Path) -> str:
    """Of the training images, from the checkpoint's facts; empty where they do not say."""
    checkpoint = path if path.suffix == ".pt" else source.checkpoints / f"step-{step:08d}.pt"
    try:
        return str(read_meta(checkpoint).facts.get("dataset_id", ""))
    except CheckpointError:
        return ""
