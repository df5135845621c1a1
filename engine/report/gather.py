"""Everything that the run folders say, checked against one another: folders in, RunFacts out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bits.checkpoint import CheckpointError, list_checkpoints, read_meta
from engine.folder import RunFolder
from engine.override import load_tree
from engine.recipe import Recipe, parse_recipe
from engine.report.facts import RunFacts
from engine.report.progress import read_progress
from engine.report.receipt import read_receipt
from engine.report.results import read_results
from engine.report.weights import weights_warnings


def gather(folders: Sequence[Path]) -> tuple[RunFacts, ...]:
    """The runs in the order given. ValueError for a folder that is no run, or is given twice."""
    for path in folders:
        _check(path)
    _refuse_twice(folders)
    return tuple(read_run(path, name) for path, name in zip(folders, short_names(folders), strict=True))


def _check(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"run {path} does not exist; give a folder that train, eval or attack wrote")
    if not path.is_dir():
        raise ValueError(f"run {path} is a file; give the run folder")
    folder = RunFolder(path)
    if not folder.recipe.is_file() and not folder.log.is_file() and not any(folder.results.glob("*.json")):
        raise ValueError(
            f"{path} is no run folder (no recipe.yaml, log.jsonl or results in it); "
            "give a folder that train, eval or attack wrote"
        )


def _refuse_twice(folders: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in folders:
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            also = "" if first == path else f" (as {first} too)"
            raise ValueError(f"run {path} is given twice{also}; give each run once")


def short_names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many parents as it takes to tell all of them apart."""
    parts = [path.resolve().parts for path in folders]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(p[-d:]) for p, d in zip(parts, depth, strict=True)]
        clashing = [i for i, name in enumerate(names) if names.count(name) > 1 and depth[i] < len(parts[i])]
        if not clashing:
            return names
        for i in clashing:
            depth[i] += 1


def read_run(path: Path, name: str) -> RunFacts:
    """One run; whatever cannot be read or does not fit together is a warning."""
    folder = RunFolder(path)
    text, recipe, warnings = _read_recipe(folder)
    environment, more = _read_environment(folder)
    progress, unread = read_progress(folder, recipe)
    results = read_results(folder)
    receipt, unread_receipt = read_receipt(path)
    classes, checkpoint_recipe = _read_checkpoint(folder)
    if progress.state == "unfinished":
        warnings.append(f"unfinished: {progress.detail}")
    trained = progress.recipes or ((checkpoint_recipe,) if checkpoint_recipe else ())
    warnings += [*more, *unread, *unread_receipt, *results.warnings, *_foreign(text, trained, folder)]
    warnings += weights_warnings(folder, results.evaluations, trained)
    return RunFacts(
        name=name,
        folder=path,
        recipe_text=text,
        recipe=recipe,
        environment=environment,
        progress=progress,
        evaluations=results.evaluations,
        classes=classes,
        warnings=tuple(warnings),
        receipt=receipt,
    )


def _read_recipe(folder: RunFolder) -> tuple[str, Mapping[str, object], list[str]]:
    """The recipe as text and by dotted names."""
    if not folder.recipe.exists():
        return "", {}, ["it has no recipe.yaml: not trained in this folder, so its recipe is unknown"]
    try:
        text = folder.recipe.read_text(encoding="utf-8")
        tree = load_tree(folder.recipe)
    except (OSError, ValueError) as error:
        return "", {}, [f"its recipe is unreadable: {error}"]
    leaves = dict(leaves_of(tree))
    try:
        parse_recipe(tree, "recipe.yaml")
    except ValueError as error:
        return text, leaves, [f"its recipe is not one of this version: {error}"]
    return text, leaves, []


def leaves_of(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted name and value of every field; an empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_environment(folder: RunFolder) -> tuple[Mapping[str, object], list[str]]:
    try:
        found = json.loads(folder.environment.read_text())
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"environment.json cannot be read: {error}"]
    if not isinstance(found, dict):
        return {}, ["environment.json is not a JSON object"]
    return found, []


def _read_checkpoint(folder: RunFolder) -> tuple[tuple[str, ...], str]:
    """Class names and recipe hash that the newest readable checkpoint states."""
    for path in reversed(list_checkpoints(folder.checkpoints)):
        try:
            facts = read_meta(path).facts
            return tuple(map(str, facts.get("classes") or ())), str(facts.get("recipe", ""))
        except (CheckpointError, OSError, AttributeError):
            continue
    return (), ""


def _foreign(text: str, trained: Sequence[str], folder: RunFolder) -> list[str]:
    """What was made by another recipe than the one that lies in the folder."""
    lines = []
    if len(set(trained)) > 1:
        lines.append(f"foreign log: its starts name different recipes, {', '.join(trained)}")
    own = _own_hash(folder) if text else None
    if own is not None and trained and own not in trained:
        lines.append(
            f"foreign recipe: recipe.yaml is {own}, but the run was trained with {', '.join(trained)}"
        )
    return lines


def _own_hash(folder: RunFolder) -> str | None:
    """The recipe's hash; None where this version has other fields, and so another hash, than the one that wrote it."""
    try:
        tree = load_tree(folder.recipe)
        recipe: Recipe = parse_recipe(tree)
    except (OSError, ValueError):
        return None
    is_same = dict(leaves_of(tree)).keys() == dict(leaves_of(recipe.model_dump(mode="json"))).keys()
    return recipe.hash if is_same else None
