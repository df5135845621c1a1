"""The documents against the code: commands parse, recipes resolve, files, fields, flags are named."""

import argparse
import os
import re
import shlex
import sqlite3
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from engine.cli import MODULES, validate
from engine.flags import LAUNCHER_FLAGS, make_parser
from engine.launch import PACKAGES, launcher_flags
from engine.ledger_file import SCHEMA, Verdict
from engine.mistake import known_fields
from engine.override import from_yaml, load_tree, merge
from engine.recipe import RESUME_MAY_CHANGE, Recipe, parse_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "TRAIN.md", "TEST.md", "CONTRIBUTING.md", "docs/recipes.md")
FLAGS = {
    "launch_gpu.py": {"--cpu": False, "--num-processes": 1},
    "launch_xla.py": {"--num-devices": 1, "--num-hosts": 1, "--compile-cache": ""},
}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
PROGRAMS = {"python", "tensorboard", "torchrun", "accelerate", "make", ".venv/bin/python"}
LISTED = ("models", "recipes", "suites", "attacks")
SECTIONS = ("data", "model", "optim", "objective", "evals", "run")


@cache
def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text(document), flags=re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The words of every command in the shell blocks, without environment assignments in front."""
    found = []
    for line in "".join(blocks(document, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        while words and ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        found += [words] if words else []
    return found


ALL_COMMANDS = [(document, words) for document in DOCUMENTS for words in commands(document)]
LAUNCHED = [words for _, words in ALL_COMMANDS if any(word in FLAGS for word in words)]
YAML = [(document, block) for document in DOCUMENTS for block in blocks(document, "yaml")]
# A block that begins with "# NAME.yaml" is that file: the reader is asked to save it, and commands may name it.
SAVED = {m[1]: block for _, block in YAML if (m := re.match(r"# (\w+\.yaml)\n", block))}


def table_rows(chunk: str) -> dict[str, list[str]]:
    """First column (its code) to the other columns."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", chunk, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


def section(name: str) -> str:
    """The part of TRAIN.md under ### `name`."""
    match = re.search(rf"^### `{name}`\n(.*?)^##", text("TRAIN.md"), flags=re.MULTILINE | re.DOTALL)
    assert match, f"TRAIN.md has no part ### `{name}`"
    return match[1]


# ---- commands


@pytest.mark.parametrize("words", LAUNCHED, ids=" ".join)
def test_a_documented_command_is_accepted(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    for name, block in SAVED.items():
        (tmp_path / name).write_text(block)
    words = [str(tmp_path / word) if word in SAVED else word for word in words]
    place = next(i for i, word in enumerate(words) if word in FLAGS)
    program = words[place]
    _, rest = launcher_flags(words[place + 1 :], FLAGS[program])
    # `validate` also resolves the recipe of `train`.
    assert validate(rest, program) in MODULES


def test_every_verb_and_action_has_a_documented_command() -> None:
    used = {word for words in LAUNCHED for word in words}
    used |= {" ".join(pair) for words in LAUNCHED for pair in pairwise(words)}  # such as attack merge
    assert set(MODULES) <= used
    assert {"make", "verify", "info", "digits", "export", *LISTED} <= used


def test_a_recipe_that_a_command_names_is_there_or_shown() -> None:
    named = {w for words in LAUNCHED for w in words if w.endswith(".yaml")}
    assert not [name for name in sorted(named - SAVED.keys()) if not (ROOT / name).is_file()]


def test_shell_blocks_hold_known_programs_only() -> None:
    strange = [(document, words[0]) for document, words in ALL_COMMANDS if words[0] not in PROGRAMS]
    assert not strange, f"a command that no test looks at: {strange}"


def test_make_targets_exist() -> None:
    makefile = text("Makefile").replace("$(STAMP):", "\n")
    targets = set(re.findall(r"^([\w.-]+):(?!=)", makefile, flags=re.MULTILINE))
    used = {"quickstart", "test"}
    for document in DOCUMENTS:
        code = "\n".join(
            "".join(m) for m in re.findall(r"`([^`\n]+)`|^    (.*)$|^(make .*)$", text(document), re.M)
        )
        used |= set(re.findall(r"^make (?:[A-Z]+=\S+ )?([a-z.][\w.-]*)", code, flags=re.MULTILINE))
    assert used <= targets, f"not in the Makefile: {sorted(used - targets)}"


def test_the_flags_of_every_verb_are_documented() -> None:
    parser = make_parser("launch_gpu.py")
    (verbs,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    assert {program: set(f) for program, f in LAUNCHER_FLAGS.items()} == {p: set(f) for p, f in FLAGS.items()}
    everything = "".join(map(text, DOCUMENTS))
    flags = {f for verb in verbs.choices.values() for a in verb._actions for f in a.option_strings}
    flags |= {flag for known in FLAGS.values() for flag in known}
    missing = [flag for flag in sorted(flags - {"--help"}) if not re.search(rf"`[^`\n]*{flag}\b", everything)]
    assert not missing, f"flags without a word: {missing}"


# ---- recipes


@pytest.mark.parametrize(("document", "block"), YAML, ids=[f"{d}-{i}" for i, (d, _) in enumerate(YAML)])
def test_a_yaml_block_is_a_recipe_or_fits_into_one(document: str, block: str) -> None:
    tree = from_yaml(block, document)
    assert isinstance(tree, dict)
    if "run" not in tree:
        tree = merge(load_tree(ROOT / "recipes/quickstart/cnn_adv.yaml"), tree)
    parse_recipe(tree, document)


def fields_of(name: str) -> dict[str, FieldInfo]:
    """Dotted names below a section, without the section and without parents of others."""
    known = {
        n.removeprefix(f"{name}."): f for n, f in known_fields(Recipe).items() if n.startswith(f"{name}.")
    }
    return {n: f for n, f in known.items() if "." in n or n not in ("attack", "warmup") or name == "evals"}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_recipe_field_is_in_its_table(name: str) -> None:
    chunk = section(name)
    missing = [n for n in fields_of(name) if f"`{n}`" not in chunk]
    assert not missing, f"TRAIN.md, {name}: no word of {missing}"


@pytest.mark.parametrize("name", [s for s in SECTIONS if s != "evals"])
def test_the_tables_hold_no_other_field_and_the_true_defaults(name: str) -> None:
    known = {n.removeprefix(f"{name}."): f for n, f in known_fields(Recipe).items()}
    for row, (default, *_) in table_rows(section(name)).items():
        assert row in known, f"TRAIN.md, {name}: {row} is not a field"
        field = known[row]
        if field.is_required():
            assert default == "required", f"{name}.{row} has no default"
        else:
            assert number(from_yaml(default, row)) == plain(field.get_default(call_default_factory=True)), row


def number(value: object) -> object:
    """3/4 in a list as the float it is."""
    if isinstance(value, list):
        return [number(v) for v in value]
    if isinstance(value, str) and re.fullmatch(r"\d+/\d+", value):
        return float(Fraction(value))
    return value


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_what_may_change_on_resume_is_named() -> None:
    chunk = text("TRAIN.md").partition("What may change")[2].partition("## 5")[0]
    assert not [name for name in RESUME_MAY_CHANGE if f"`{name}`" not in chunk]


# ---- ledger


def test_the_columns_of_the_ledger_are_documented() -> None:
    rows = table_rows(text("TEST.md").partition(". The ledger\n")[2].partition("\n## ")[0])
    assert tuple(rows) == Verdict._fields


@pytest.mark.parametrize("query", blocks("TEST.md", "sql"))
def test_a_documented_query_runs(query: str) -> None:
    db = sqlite3.connect(":memory:")
    for statement in SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO evaluation VALUES ('e', '{\"name\": \"pgd20_linf16\"}')")
    for component, correct, broken_by in (("clean", 1, None), ("pgd20_linf16", 0, "pgd20_linf16")):
        row = ("e", "7/1", component, 0, 7, 7, correct, 1, 0.5, broken_by, None, None, 0.9, 0.1, 0.02)
        db.execute(f"INSERT INTO verdict VALUES ({','.join('?' * len(row))})", row)
    assert len(db.execute(query).fetchall()) == 1
    db.close()


# ---- the tree, links, words


def tree() -> set[str]:
    """The paths that README's tree names."""
    (block,) = blocks("README.md", "text")
    paths, folder = set(), ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.add(name)
        else:
            paths.add(folder + name)
    return paths


def test_the_tree_names_files_that_exist() -> None:
    assert not [path for path in sorted(tree()) if not (ROOT / path).exists()]


def test_the_tree_names_every_file_of_the_packages() -> None:
    found = {
        os.path.relpath(path, ROOT)
        for package in (*PACKAGES, "benchmarks")
        for suffix in ("py", "c", "css", "csv")
        for path in (ROOT / package).glob(f"**/*.{suffix}")
    }
    found |= {path.name for path in ROOT.glob("*.py")}
    assert not sorted(found - tree())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_test_files_exist(document: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", text(document))
    tests = re.findall(r"`(tests/[\w/]+\.py)`", text(document))
    assert not [name for name in links + tests if not (ROOT / name).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_stand_alone(document: str) -> None:
    """No path of somebody's machine, nothing outside the checkout, no address, plain characters."""
    strange = re.findall(r"(?<![\w./])/[a-z]+/\S*|\.\./\S*|https?://\S+|~/\S*", text(document))
    assert not strange
    assert text(document).isascii()
