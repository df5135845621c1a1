"""`list`: models, recipes, suites and attacks, from files and tables alone: torch and timm take too long to import."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from data.suite import Suite, list_suites
from data.suite_folders import found_suites
from engine.cli import Launch
from engine.columns import Column, print_table
from engine.model_table import ModelFacts, other_timm, read_table
from engine.protocols import DEFAULT, list_protocols, load_protocol
from engine.published import PATH as PUBLISHED
from engine.published import PublishedFile, read_published
from engine.recipe import Recipe, load_recipe
from engine.variants import FILE as VARIANTS
from engine.variants import variants_of
from engine.words import objective_words
from robust.catalogue import list_attacks

ROOT = Path(__file__).parents[1]
Entry = TypeVar("Entry")


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """Everything that was listed, with more fields than the table shows."""
    if os.environ.get("RANK", "0") != "0":
        return {}  # under an outside launcher one process does it all
    if arguments.data is not None and arguments.what != "suites":
        raise ValueError(f"--data {arguments.data}: only `list suites` looks into a folder; drop it")
    if arguments.published and arguments.what != "models":
        raise ValueError("--published is for `list models`; drop it")
    if arguments.published:
        return {"published": _published_files(arguments)}
    listing = {"models": _models, "recipes": _recipes, "suites": _suites, "attacks": _attacks}
    return {arguments.what: listing[arguments.what](arguments)}


# ---- models


def _models(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    table = read_table()
    notes = [
        "classes as shown; MACs: multiply-adds of convolutions and matrix products for one image of the input size"
    ]
    if arguments.pattern is None:
        shown = [row for row in table.rows if row.is_curated]
        notes.append(
            f"{len(table.rows) - len(shown)} more models of timm: `list models '*'`, or a pattern such as 'vit_*'"
        )
    else:
        shown = _matching(arguments.pattern, table.rows, lambda row: (row.name,), what="model")
    shown = sorted(shown, key=lambda row: (row.source != "toolkit", row.family, row.name))
    titles = ("name", "parameters/M", "MACs/G", "input/px", "classes", "source", "family", "paper")
    columns = [Column(title, right=title.endswith(("M", "G", "px", "classes"))) for title in titles]
    print_table(columns, [_model_row(row) for row in shown], notes=[*notes, *_if(other_timm(table))])
    return [row._asdict() for row in shown]


def _model_row(row: ModelFacts) -> list[str]:
    return [
        row.name,
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f}",
        "" if row.macs is None else f"{row.macs / 1e9:.3f}",
        str(row.input_size),
        str(row.num_classes),
        row.source,
        row.family,
        row.paper,
    ]


def _published_files(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    table = read_published()
    shown: Sequence[PublishedFile] = table.files
    if arguments.pattern is not None:
        shown = _matching(
            arguments.pattern, shown, lambda row: (row.name, row.model, row.paper), what="model"
        )
    used = {name: row for row in shown for name in (row.paper, row.container, *row.numbers, *row.missing)}
    facts = {**table.papers, **table.measures, **table.containers}
    notes = [f"{name}: {text}" for name, text in facts.items() if name in used]
    notes += [f"{row.name}: {row.note}" for row in shown if row.note]
    titles = ("name", "paper", "model", "file", "container", "norm", "recipe", "numbers/%")
    print_table([Column(title) for title in titles], [_published_row(row) for row in shown], notes=notes)
    return [row.model_dump() for row in shown]


def _published_row(row: PublishedFile) -> list[str]:
    numbers = [f"{name} {value:g}" for name, value in row.numbers.items()]
    numbers += [f"{name} not known" for name in row.missing]
    return [
        *(row.name, row.paper, row.model, row.file or "", row.container or "", row.norm, row.recipe or ""),
        ", ".join(numbers),
    ]


def _if(note: str | None) -> list[str]:
    return [] if note is None else [note]


# ---- recipes


def _recipes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = sorted(p for p in ROOT.glob("recipes/**/*.yaml") if p != PUBLISHED and p.name != VARIANTS)
    if not found:
        raise ValueError(f"no recipes in {ROOT / 'recipes'}; start in a checkout of the toolkit")
    paths = [path.relative_to(ROOT).as_posix() for path in found]
    if arguments.pattern is not None:
        paths = _matching(arguments.pattern, paths, _recipe_names, what="recipe")
    recipes = [_describe_recipe(path) for path in paths]
    titles = ("recipe", "paper", "model", "objective", "epochs", "batch", "published/%", "about")
    rows = [[str(recipe[title.removesuffix("/%")]) for title in titles] for recipe in recipes]
    columns = [Column(title, right=title in ("epochs", "batch")) for title in titles]
    print_table(columns, rows, notes=_recipe_notes(recipes))
    return recipes


def _recipe_notes(recipes: Sequence[dict[str, Any]]) -> list[str]:
    notes = ["batch: images of an update, over all devices"]
    papers = {recipe["paper"] for recipe in recipes} - {""}
    if papers:
        used = papers | {name for recipe in recipes for name in recipe.get("numbers", ())}
        table = read_published()
        notes += [
            f"{name}: {text}" for name, text in {**table.papers, **table.measures}.items() if name in used
        ]
    of_list: dict[tuple[str, ...], list[str]] = {}
    for recipe in recipes:
        if names := tuple(recipe.get("variants", ())):
            of_list.setdefault(names, []).append(recipe["recipe"])
    notes += [f"variants of {', '.join(of)}: @{', @'.join(names)}" for names, of in of_list.items()]
    return notes


def _papers() -> Mapping[str, str]:
    return read_published().papers if PUBLISHED.is_file() else {}


def _recipe_names(path: str) -> tuple[str, ...]:
    """A recipe goes by its path, the path below recipes/, and its file's name."""
    return path, path.removeprefix("recipes/"), Path(path).stem, Path(path).name


def _describe_recipe(path: str) -> dict[str, Any]:
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
        recipe = load_recipe(ROOT / path)
        variants = list(variants_of(ROOT / path))
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split()).replace(f"{ROOT}/", "")
        blank = dict.fromkeys(("paper", "model", "objective", "epochs", "batch", "evals", "published"), "")
        return {"recipe": path, **blank, "about": f"cannot be read: {line}", "error": line}
    return {
        "recipe": path,
        "paper": family if (family := Path(path).parent.name) in _papers() else "",
        "model": recipe.model.name,
        "objective": objective_words(recipe.objective),
        "epochs": recipe.run.epochs,
        "batch": recipe.run.batch_size * recipe.optim.accumulate,
        "evals": ", ".join(entry.name for entry in recipe.evals),
        "published": _published(recipe),
        "numbers": dict(recipe.published),
        "variants": variants,
        "about": _first_comment(text) or recipe.description,
        "hash": recipe.hash,
    }


def _published(recipe: Recipe) -> str:
    return ", ".join(f"{name} {value}" for name, value in recipe.published.items())


def _first_comment(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


# ---- suites and attacks


def _suites(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    shown: Sequence[Any] = list_suites()
    if arguments.pattern is not None:
        shown = _matching(arguments.pattern, shown, lambda suite: (suite.id, *suite.folders), what="suite")
    there = None if arguments.data is None else _found(arguments.data)
    titles = ["suite", "about", "shifts", "metric", "license", "how to get it"]
    rows = [[s.id, s.description, s.base or "", s.metric, s.license, _how_to_get(s)] for s in shown]
    suites = [asdict(suite) for suite in shown]
    notes = _sources(suites) + _protocols()
    if there is not None:
        titles.insert(1, "found")
        for row, suite in zip(rows, suites, strict=True):
            suite["found"] = suite["id"] in there
            row.insert(1, "yes" if suite["found"] else "no")
        known = {suite.id for suite in list_suites()}
        if own := [name for name in there if name not in known]:
            notes.append(f"shards of your own in {arguments.data}: {', '.join(own)}")
    print_table([Column(title) for title in titles], rows, notes=notes)
    return suites


def _how_to_get(suite: Suite) -> str:
    return f"{suite.get}; then {suite.make}" if suite.get else suite.make


def _protocols() -> list[str]:
    return [f"--protocol {name}: {load_protocol(name).title}" for name in list_protocols() if name != DEFAULT]


def _sources(suites: Sequence[dict[str, Any]]) -> list[str]:
    """One note per source: it is long, and several suites share it."""
    names: dict[str, list[str]] = {}
    for suite in suites:
        names.setdefault(suite["source"], []).append(suite["id"])
    return [f"source of {', '.join(ids)}: {source}" for source, ids in names.items()]


def _found(root: Path) -> list[str]:
    if not root.is_dir():
        raise ValueError(f"--data {root} is no folder; give the one that holds a folder of shards per suite")
    return found_suites(root)


def _attacks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    shown: Sequence[Any] = list_attacks()
    if arguments.pattern is not None:
        shown = _matching(arguments.pattern, shown, lambda attack: (attack.name,), what="attack")
    titles = ("attack", "norms", "parameter", "default", "meaning", "source")
    rows = [
        [attack.name, ",".join(attack.norms), p.name, _default(p.default), p.meaning, attack.source]
        for attack in shown
        for p in attack.parameters
    ]
    print_table([Column(title) for title in titles], rows)
    return [asdict(attack) for attack in shown]


def _default(value: object) -> str:
    if value is None:
        return "required"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---- patterns


def _matching(
    pattern: str, entries: Sequence[Entry], names: Callable[[Entry], Sequence[str]], *, what: str
) -> list[Entry]:
    """The entries of which a name fits the shell pattern; ValueError with the nearest where none does."""
    shown = [entry for entry in entries if any(fnmatchcase(name, pattern) for name in names(entry))]
    if shown:
        return shown
    known = [name for entry in entries for name in names(entry)]
    wider = f"*{pattern.strip('*')}*".replace("**", "*")
    if count := sum(any(fnmatchcase(name, wider) for name in names(entry)) for entry in entries):
        raise ValueError(f"no {what} is named {pattern!r}; '{wider}' fits {count}")
    near = get_close_matches(pattern.strip("*?"), known, n=1, cutoff=0.0)
    raise ValueError(f"no {what} fits {pattern!r}; the nearest is {near[0]}, and '*' shows all")
