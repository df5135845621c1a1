"""A reader is told what numbers are not: finished, the run's own, borne out, of the last weights, comparable."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from engine.log import RunLog
from tests.engine.report.made_runs import CLEAN, MakeRun, Spec, pgd

Report = Callable[..., dict[str, Any]]
PGD = Spec(name="pgd20_linf8", attack=pgd(8 / 255), broken=7)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def said(result: dict[str, Any], words: str) -> bool:
    """Whether a warning has these words; then the page, the Markdown and the terminal have it too."""
    found = any(re.search(words, warning) for warning in result["warnings"])
    page = unescape(Path(result["output"]["html"]).read_text())
    box = re.search(r"<aside.*?</aside>", page, re.DOTALL)
    markdown = unescape(Path(result["output"]["md"]).read_text()).replace("\\", "")
    texts = (box[0] if box else "", markdown, result["printed"])
    return found and all("arning" in text and re.search(words, text) for text in texts)


def test_a_sound_run_warns_of_nothing(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    result = report(make_run(tmp_path / "a", (CLEAN, PGD)))
    assert result["warnings"] == []
    assert "<aside" not in Path(result["output"]["html"]).read_text()
    assert result["runs"][0]["state"] == "finished"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (None, "unfinished: step 88 of 352; its log has no end"),
        ("stop", "unfinished: step 88 of 352; stopped by a signal"),
        ("error", "unfinished: step 88 of 352; ended by an error: the disk is full"),
    ],
)
def test_unfinished(tmp_path: Path, make_run: MakeRun, report: Report, end: str | None, words: str) -> None:
    result = report(make_run(tmp_path / "a", end=end))
    assert said(result, words)
    assert result["runs"][0]["state"] == "unfinished"


def test_going_on_after_an_end_is_unfinished_again(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    (run / "exit.json").unlink()
    RunLog(run / "log.jsonl").write("start", resumed=True, step=88)
    assert said(report(run), "unfinished")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_correct": 58}, "num_correct 58, the ledger's rows say 57"),
        ({"num_images": 61}, "num_images 61, the ledger's rows say 60"),
        ({"contract": "other"}, 'contract "other", the ledger says "default'),
        ({"seed": 4}, "seed 4, the ledger says 0"),
        ({"evaluation": "0" * 32}, "no verdict of evaluation 0{32}"),
        ({"components": {"clean": {"num_images": 60, "num_correct": 1}}}, "counts of clean are not those"),
        ({"num_images": "many"}, "not the JSON of a result .num_images"),
        ({"name": "other"}, "it is about other"),
    ],
)
def test_a_result_that_the_ledger_contradicts_is_no_number(
    tmp_path: Path, make_run: MakeRun, report: Report, values: dict[str, object], words: str
) -> None:
    run = make_run(tmp_path / "a", (CLEAN, PGD))
    change(run / "results/clean.json", **values)
    result = report(run)
    assert said(result, f"a: results/clean.json is not shown: .*{words}")
    assert [e["evaluation"] for e in result["evaluations"]] == ["pgd20_linf8"]


def test_rows_that_are_gone(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", (CLEAN, PGD))
    db = sqlite3.connect(run / "ledger/rank-0.sqlite")
    db.execute("DELETE FROM verdict WHERE key = '1/0001' AND component != 'clean'")
    db.commit()
    db.close()
    result = report(run)
    assert said(
        result, "results/pgd20_linf8.json is not shown: it says num_rows 120, the ledger's rows say 119"
    )
    assert [e["evaluation"] for e in result["evaluations"]] == ["clean"]


def test_damaged_and_absent_ledger(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    (run / "ledger/rank-0.sqlite").write_bytes(b"no database" * 500)
    assert said(report(run), "clean.json is not shown: ledger .*file is not a database")
    shutil.rmtree(run / "ledger")
    result = report(run)
    assert said(result, "clean.json is not shown: .*has no verdict")
    assert result["evaluations"] == []


def test_damaged_files_are_named_and_the_rest_is_shown(
    tmp_path: Path, make_run: MakeRun, report: Report
) -> None:
    run = make_run(tmp_path / "a", (CLEAN, replace(PGD, gallery=2)))
    (run / "results/pgd5.json").write_text("{")
    (run / "environment.json").write_text("[1")
    (run / "recipe.yaml").write_text("a: [")
    (run / "log.jsonl").write_bytes(b"\xff\xfe")
    (run / "gallery/pgd20_linf8.safetensors").write_bytes(b"short")
    result = report(run)
    for words in (
        "results/pgd5.json is not shown",
        "environment.json cannot",
        "recipe is unreadable",
        "log.jsonl cannot",
    ):
        assert said(result, words), words
    assert said(result, "gallery/pgd20_linf8.safetensors is not shown")
    assert len(result["evaluations"]) == 2


def test_pictures_of_another_evaluation(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", (replace(CLEAN, gallery=2), replace(PGD, gallery=2)))
    (run / "gallery/clean.safetensors").rename(run / "gallery/pgd20_linf8.safetensors")
    assert said(
        report(run), "gallery/pgd20_linf8.safetensors is not shown: its pictures are of another evaluation"
    )


def test_recipe_of_another_version(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text() + "later_field: 3\n")
    result = report(run)
    assert said(result, "not one of this version: recipe.yaml: later_field is not a field")
    assert "later_field: 3" in Path(result["output"]["html"]).read_text()


def test_foreign_recipe(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", overrides=["optim.lr=0.5"])
    shutil.copy(other / "recipe.yaml", run / "recipe.yaml")
    assert said(report(run), "foreign recipe: recipe.yaml is [0-9a-f]{16}, but the run was trained with")


def test_foreign_results(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    other = make_run(tmp_path / "b", (replace(CLEAN, weights_sha256="5" * 64),), overrides=["optim.lr=0.5"])
    run = make_run(tmp_path / "a", ())
    for name in ("results", "ledger"):
        shutil.copytree(other / name, run / name)
    result = report(run)
    assert said(result, "clean: measured on raw weights that are in no checkpoint of this folder")
    assert said(result, "clean: foreign results, they name recipe [0-9a-f]{16}, but")


def test_results_of_an_older_checkpoint(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    import torch

    from bits.checkpoint import save_checkpoint

    run = make_run(tmp_path / "a", (CLEAN,))
    make_run(run, (PGD,))
    save_checkpoint(run / "checkpoints", 99, {"model": {"w": torch.ones(2)}}, facts={"classes": []})
    words = "clean, pgd20_linf8: measured on the raw weights of step-00000088.pt, not on those of .*step-00000099.pt"
    assert said(report(run), words)
    (run / "checkpoints/step-00000099.pt").write_bytes(b"torn")
    assert said(report(run), "the newest checkpoint step-00000099.pt cannot be read")


def test_results_of_two_weights_have_no_drop_between_them(
    tmp_path: Path, make_run: MakeRun, report: Report
) -> None:
    noise = Spec(name="digits-noise", suite="digits-noise", weights_sha256="7" * 64)
    result = report(make_run(tmp_path / "a", (CLEAN, noise)))
    assert said(result, "its results are about 2 different raw weights: clean . digits-noise")
    assert [e["relative_drop"] for e in result["evaluations"]] == [None, None]


def test_a_folder_of_results_without_recipe(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    run = make_run(tmp_path / "a", recipe=False)
    assert said(report(run), "it has no recipe.yaml: not trained in this folder")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dataset": "e" * 64}, "evaluation set clean dddddddd / clean eeeeeeee"),
        ({"contract": "bai2021"}, "contract bai2021 / default/squash-bicubic-32px"),
        ({"seed": 3}, "seed of the random starts 0 / 3"),
        ({"attack": pgd(8 / 255, step_size=1 / 255)}, "attack's step_size 1/255 / 2/255"),
        ({"attack": pgd(8 / 255, restarts=5)}, "attack's restarts 1 / 5"),
    ],
)
def test_same_name_other_settings(
    tmp_path: Path, make_run: MakeRun, report: Report, other: dict[str, Any], words: str
) -> None:
    runs = [make_run(tmp_path / "a", (PGD,)), make_run(tmp_path / "b", (replace(PGD, **other),))]
    result = report(*runs, output=tmp_path / "page.html")
    assert said(result, f"not comparable between the runs; they differ in {words}")
    page = (tmp_path / "page.html").read_text()
    assert re.search(
        rf"<th scope=.col.>.*\u2260 not comparable: {words}.*?</th>", page.replace("&#x27;", "'")
    )
    assert "not comparable" in result["findings"][0]
    assert {e["comparable"] for e in result["evaluations"]} != {"yes"}


def test_what_a_seed_does_not_touch_is_comparable(tmp_path: Path, make_run: MakeRun, report: Report) -> None:
    still = Spec(name="fgsm", attack=pgd(8 / 255) | {"random_start": False}, broken=3)
    specs = (CLEAN, still)
    runs = [make_run(tmp_path / "a", specs), make_run(tmp_path / "b", [replace(s, seed=1) for s in specs])]
    assert report(*runs, output=tmp_path / "page.html")["warnings"] == []
