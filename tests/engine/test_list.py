"""`list`: quick, complete, the same in a pipe of any width, one line for what does not match."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine.model_table
import engine.verb_list
from data.suite import list_suites
from engine.cli import Launch, main
from engine.columns import Column, plain_lines
from engine.model_table import CURATED, read_table
from engine.recipe import load_recipe
from robust.catalogue import list_attacks

ROOT = Path(__file__).parents[2]
CPU = Launch(backend="cpu")
Listed = Callable[..., tuple[list[str], Any]]


@pytest.fixture
def listed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Listed:
    """listed(*words) -> lines of stdout, and what --json wrote."""

    def run(*words: str | Path) -> tuple[list[str], Any]:
        path = tmp_path / "out.json"
        assert main(["list", *map(str, words), "--json", str(path)], CPU, program="launch_gpu.py") == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines(), json.loads(path.read_text())[str(words[0])]

    return run


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str | Path) -> str:
        assert main(["list", *map(str, words)], CPU, program="launch_gpu.py") == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert err.startswith("error: ")
        return err

    return run


@pytest.mark.parametrize("what", ["models", "recipes", "suites", "attacks"])
def test_no_listing_imports_torch(what: str) -> None:
    code = (
        "import sys; from engine.cli import Launch, main; "
        f"code = main(['list', '{what}'], Launch(backend='auto'), program='p'); "
        "heavy = {'torch', 'timm', 'torchvision', 'torch_xla', 'accelerate', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 10, "0.3 s on a quiet machine"


# ---- models


def test_models_without_a_pattern(listed: Listed) -> None:
    lines, rows = listed("models")
    names = [row["name"] for row in rows]
    own = {row.name for row in read_table().rows if row.source == "toolkit"}
    assert {"small_cnn", "small_vit"} <= own
    assert set(names) == own | set(CURATED)
    assert set(names[: len(own)]) == own, "the toolkit's own first"
    head, *body = [line.split() for line in lines if not line.startswith("#")]
    assert head == ["name", "parameters/M", "MACs/G", "input/px", "classes", "source", "family", "paper"]
    deit = next(row for row in body if row[0] == "deit_small_patch16_224")
    assert deit == [
        "deit_small_patch16_224",
        "22.05",
        "4.599",
        "224",
        "1000",
        "timm",
        "deit",
        "arXiv:2012.12877",
    ]
    assert all(len(row) == len(head) for row in body), "one word a cell, so that it cuts well"
    more = len(read_table().rows) - len(names)
    assert f"# {more} more models of timm: `list models '*'`, or a pattern such as 'vit_*'" in lines


def test_models_by_pattern(listed: Listed) -> None:
    lines, rows = listed("models", "resnet[15]?t")
    assert [row["name"] for row in rows] == ["resnet10t", "resnet14t", "resnet50t"]
    assert not any("more models" in line for line in lines)
    lines, rows = listed("models", "*")
    assert len(rows) == len(read_table().rows)
    assert len([line for line in lines if not line.startswith("#")]) == len(rows) + 1


def test_a_model_that_could_not_be_counted(listed: Listed) -> None:
    lines, rows = listed("models", "cait_xxs24_224")
    assert rows[0]["macs"] is None
    assert lines[1].split()[1:3] == ["11.96", "-"]


def test_no_model_matches(refused: Callable[..., str]) -> None:
    count = sum("resnet5" in row.name for row in read_table().rows)
    assert refused("models", "resnet5") == f"error: no model is named 'resnet5'; '*resnet5*' fits {count}\n"
    assert "no model fits 'smal_cnn'; the nearest is small_cnn, and '*' shows all" in refused(
        "models", "smal_cnn"
    )
    assert "no model is named ''; '*' fits" in refused("models", "")


def test_another_timm_is_named(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = listed("models")
    installed = engine.model_table.metadata.version("timm")
    assert (installed == read_table().timm) == (not any("describes timm" in line for line in lines))
    monkeypatch.setattr(engine.model_table.metadata, "version", lambda name: "9.9")
    lines, _ = listed("models")
    assert lines[-1].startswith(f"# the table describes timm {read_table().timm}, installed is 9.9: ")


def test_a_damaged_table_is_one_line(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.verb_list, "read_table", lambda: read_table(tmp_path / "t.csv"))
    assert "t.csv is missing; restore it from the repository, or write it with" in refused("models")
    for text in ("", "# timm\n", "# timm 1; x\nname,family\nresnet18,resnet\n", "<html>\n<p>a,b</p>"):
        (tmp_path / "t.csv").write_text(text)
        assert "t.csv is not the table of models; restore it" in refused("models")


# ---- recipes


def test_recipes(listed: Listed) -> None:
    lines, rows = listed("recipes")
    found = {row["recipe"]: row for row in rows}
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.yaml")}
    assert set(found) == {name for name in files if not name.endswith(("/published.yaml", "/variants.yaml"))}
    row = found["recipes/quickstart/cnn_adv.yaml"]
    recipe = load_recipe(ROOT / "recipes/quickstart/cnn_adv.yaml")
    assert (row["model"], row["epochs"], row["hash"]) == ("small_cnn", recipe.run.epochs, recipe.hash)
    assert row["objective"] == "adversarial: PGD-1, linf, eps 16/255, step 16/255, random start"
    assert row["evals"].split(", ") == [entry.name for entry in recipe.evals]
    assert row["about"].startswith("Adversarial training (PGD-1) with augmentation warm-up")
    (line,) = [line for line in lines if line.startswith("recipes/quickstart/cnn_adv.yaml ")]
    assert row["about"] in line
    assert not any("error" in row for row in rows)


def test_recipes_by_pattern(listed: Listed, refused: Callable[..., str]) -> None:
    both = ["recipes/cue64/cnn_adv.yaml", "recipes/quickstart/cnn_adv.yaml"]
    for pattern, fitting in (
        ("cnn_adv", both),
        ("recipes/*/cnn_adv.yaml", both),
        ("quickstart/cnn_a*", both[1:]),
    ):
        assert [row["recipe"] for row in listed("recipes", pattern)[1]] == fitting
    assert "no recipe fits 'cnn_advv'; the nearest is cnn_adv" in refused("recipes", "cnn_advv")


def test_a_broken_recipe_is_one_row(listed: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes" / "mine"
    folder.mkdir(parents=True)
    good = (ROOT / "recipes/quickstart/base.yaml").read_text()
    (folder / "good.yaml").write_text(
        good.replace("model:", "published: {clean: 76.1, pgd100: 34.2}\nmodel:")
    )
    (folder / "field.yaml").write_text(good.replace("lr:", "lrr:"))
    (folder / "yaml.yaml").write_text("data: [")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "base.yaml").write_text("base: nowhere.yaml\n")
    monkeypatch.setattr(engine.verb_list, "ROOT", tmp_path)
    lines, rows = listed("recipes")
    errors = {row["recipe"].removeprefix("recipes/mine/"): row.get("error", "") for row in rows}
    assert errors.pop("good.yaml") == ""
    assert "lrr is not a field; did you mean optim.lr?" in errors.pop("field.yaml")
    assert "not valid YAML" in errors.pop("yaml.yaml")
    assert errors.pop("bytes.yaml")
    assert "base nowhere.yaml is not a file" in errors.pop("base.yaml")
    assert not errors
    assert len(lines) == len(rows) + 2  # the head and a note
    assert sum("cannot be read: " in line for line in lines) == 4
    assert str(tmp_path) not in "".join(lines)
    assert (
        next(row for row in rows if row["recipe"].endswith("good.yaml"))["published"]
        == "clean 76.1, pgd100 34.2"
    )


def test_no_recipes(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.verb_list, "ROOT", tmp_path)
    assert "no recipes in " in refused("recipes")


# ---- suites and attacks


def test_suites(listed: Listed, tmp_path: Path, refused: Callable[..., str]) -> None:
    known = list_suites()
    lines, rows = listed("suites")
    assert [row["id"] for row in rows] == [suite.id for suite in known]
    assert all(suite.make in line for suite, line in zip(known, lines[1:], strict=False))
    assert "found" not in rows[0]
    for name in ("clean", "rain"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "index.json").write_text("{}")
    lines, rows = listed("suites", "--data", tmp_path / "data")
    assert {row["id"] for row in rows if row["found"]} == {"clean"}
    assert lines[1].split()[:2] == ["clean", "yes"]
    assert lines[2].split()[1] == "no"
    assert lines[-1] == f"# shards of your own in {tmp_path / 'data'}: rain"
    assert "no suite fits 'claen'; the nearest is clean" in refused("suites", "claen")
    assert "nowhere is no folder; give the one that holds" in refused(
        "suites", "--data", tmp_path / "nowhere"
    )
    assert "only `list suites` looks into a folder; drop it" in refused("models", "--data", tmp_path)


def test_attacks(listed: Listed, refused: Callable[..., str]) -> None:
    known = list_attacks()
    lines, rows = listed("attacks")
    assert [row["name"] for row in rows] == [attack.name for attack in known]
    assert len(lines) == 1 + sum(len(attack.parameters) for attack in known)
    (line,) = [line for line in lines if line.startswith("pgd ") and " steps " in line]
    assert line.split()[:4] == ["pgd", "linf,l2", "steps", "20"]
    assert "arXiv:1706.06083" in line
    assert {p["name"]: p["default"] for p in rows[0]["parameters"]}["eps"] is None
    assert next(line for line in lines if " eps " in line).split()[3] == "required"
    assert "no attack fits 'pdg'; the nearest is pgd" in refused("attacks", "pdg")


def test_what_can_be_listed(refused: Callable[..., str]) -> None:
    assert "invalid choice: 'modles'" in refused("modles")


# ---- the text


def test_plain_text_does_not_depend_on_a_width(monkeypatch: pytest.MonkeyPatch, listed: Listed) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    narrow, _ = listed("attacks")
    monkeypatch.setenv("COLUMNS", "500")
    assert listed("attacks")[0] == narrow
    assert "…" not in "".join(narrow)


def test_plain_lines() -> None:
    columns = [Column("name"), Column("n", right=True), Column("about")]
    lines = plain_lines(columns, [["a", "5", "x  y\nz"], ["long", "1234", ""]])
    assert lines == ["name     n  about", "a        5  x y z", "long  1234  -"]


def test_on_a_terminal_nothing_is_cut_and_brackets_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    engine.verb_list.print_table(
        [Column("name"), Column("about")], [["a" * 40, "[bold] words " * 9]], notes=["[0, 1]"]
    )
    out = capsys.readouterr().out
    assert "a" * 40 in out
    assert out.count("[bold]") == 9
    assert "[0, 1]" in out
    assert "…" not in out
