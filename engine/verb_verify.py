"""`attack verify`: the images that an attack has stored, judged once more by the model they are said to break."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bits.checkpoint import write_atomic
from bits.environment import Environment, open_environment
from engine.adversarial_store import stored_evaluation
from engine.attack_flags import attack_words_of
from engine.attack_subject import kept_subject
from engine.build import build_model
from engine.cli import Launch
from engine.evaluate import Evaluator
from engine.folder import RunFolder
from engine.ledger import Ledger, read_ledger
from engine.measure import evaluators
from engine.sources import Access
from engine.subject import open_subject
from engine.verb_measure import stated, with_entries
from engine.verification import Verification, verify

RESULT = "verified.json"
Stored = Mapping[str, list[Path]]
"""Evaluation id -> its files."""


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """What is found of each evaluation in the folder; also written beside its images."""
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}, but must be 1 or more")
    stored = _stored(arguments.folder)
    book = read_ledger(RunFolder(arguments.folder).ledger)
    abouts = {identity: _about(book, identity, files[0]) for identity, files in stored.items()}
    env = open_environment(
        launch.backend, precision="float32", world_size=launch.world_size, num_devices=launch.num_devices
    )
    try:
        results = []
        for identity, files in stored.items():
            about = abouts[identity]
            evaluator = _evaluator(arguments, env, about)
            _refuse_another(evaluator, about, identity)
            batch = arguments.batch_size or int(about["attack"]["lanes"])
            found = verify(evaluator, about, identity, files, list(book.rows(identity)), batch)
            write_atomic(files[0].parent / RESULT, (json.dumps(found.plain(), indent=1) + "\n").encode())
            results.append(found)
    finally:
        env.close()
    _print(results, quiet=arguments.quiet)
    return {"exit_code": 0, "results": [found.plain() for found in results]}


def _print(results: list[Verification], *, quiet: bool) -> None:
    for found in results:
        print(found, file=sys.stdout)
        names = [*found.right_again, *found.wrong_now, *found.outside_ball, *found.outside_box]
        for name in [] if quiet else dict.fromkeys(names[:20]):
            print(f"  {name}", file=sys.stdout)


def _stored(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted((folder / "adversarial").glob("*/block-*.safetensors")):
        files.setdefault(stored_evaluation(path), []).append(path)
    if files.pop("", None) or not files:
        raise ValueError(
            f"{folder} has no stored adversarial images that can be read; attack with --save-images, and give the "
            "folder of the results"
        )
    return files


def _about(book: Ledger, identity: str, path: Path) -> Mapping[str, Any]:
    found = book.evaluations().get(identity)
    if found is None:
        raise ValueError(
            f"{path.parent} belongs to evaluation {identity}, which the ledger beside it does not have"
        )
    return found


def _evaluator(arguments: argparse.Namespace, env: Environment, about: Mapping[str, Any]) -> Evaluator:
    """The model and the clean images, as the attack had them."""
    words = _words(arguments, about)
    subject = open_subject(words.run, weights=words.weights, stated=stated(words))
    access = Access(words.cache or subject.recipe.data.cache, allow_pipes=words.allow_pipes)
    recipe = with_entries(subject.recipe, words, access)
    model = build_model(recipe, env, num_classes=len(subject.classes), layout=None)
    subject.load_into(model)
    ((evaluator, _),) = evaluators(
        env,
        recipe,
        RunFolder(arguments.folder).ledger,
        {subject.weights: model},
        recipe.evals,
        access,
        recipe_hash=subject.recipe_hash,
        classes=subject.classes,
    )
    return evaluator


def _words(arguments: argparse.Namespace, about: Mapping[str, Any]) -> argparse.Namespace:
    """The words of the attack: those that it has kept, and in their place what the user says now."""
    is_run = RunFolder(arguments.folder).recipe.is_file()
    kept = {} if is_run and arguments.run is not None else _kept(arguments.folder, is_run=is_run)
    words = attack_words_of(about["attack"])
    for name, value in kept.items():
        setattr(words, name, value)
    told = {name: getattr(arguments, name) for name in ("run", "data", "cache")}
    for name, value in told.items():
        if value is not None:
            setattr(words, name, value)
    words.run = Path(words.run)
    words.allow_pipes = words.allow_pipes or arguments.allow_pipes
    words.weights = arguments.weights if arguments.weights != "raw" else words.weights
    return words


def _kept(folder: Path, *, is_run: bool) -> dict[str, Any]:
    """A run is where it is now, wherever it was then."""
    try:
        kept = kept_subject(folder)
    except ValueError:
        if not is_run:
            raise
        kept = {}
    return kept | ({"run": str(folder)} if is_run else {})


def _refuse_another(evaluator: Evaluator, about: Mapping[str, Any], identity: str) -> None:
    """ValueError where the model or the shards are not those of the attack."""
    dataset = about["suite"].rpartition("@")[2]
    found: Iterator[tuple[str, object, object, str]] = iter(
        (
            ("weights", evaluator.weights_sha256[:16], about["weights_sha256"][:16], "--run"),
            ("data set", evaluator.index.dataset_id, dataset, "--data"),
        )
    )
    for what, here, there, flag in found:
        if here != there:
            raise ValueError(
                f"evaluation {identity} attacked another model or set: its {what} is {there}, and {here} is here; name "
                f"the right one with {flag}"
            )
