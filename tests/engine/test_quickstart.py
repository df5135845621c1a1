"""The quickstart's tasks without a training: what is launched, from which shards, and what a second start reuses."""

from pathlib import Path
from typing import Any

import pytest

from data.cue64 import FOLDERS
from data.suite import load_suite
from engine import quickstart
from engine.children import ROOT
from engine.eval_fields import SuiteEval
from engine.quickstart import CORRELATIONS, CUES, TASKS, main, run_phases
from engine.recipe import load_recipe


class Recorded:
    """Children that run nothing."""

    def __init__(self) -> None:
        self.launched: list[list[str]] = []
        self.said: list[str] = []

    def launch(self, kind: str, label: str, verb: str, *words: object) -> None:
        self.launched.append([kind, verb, *map(str, words)])

    def say(self, label: str, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("name", TASKS)
def test_every_training_is_of_a_recipe_and_ends_in_the_report(name: str) -> None:
    task = TASKS[name]
    assert {training.name for training in task.trainings} == set(task.shown)
    for training in task.trainings:
        recipe = load_recipe(ROOT / training.recipe, training.words)
        for entry in recipe.evals:
            if isinstance(entry, SuiteEval):
                assert load_suite(entry.name).id == entry.name


def test_the_cue_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models are judged on the shards of one; each learns from its own."""
    monkeypatch.setattr(quickstart, "is_finished", lambda *_: False)
    children = Recorded()
    run_phases(children, TASKS["cue64"])  # type: ignore[arg-type]
    made = [words for words in children.launched if words[1] == "shards"]
    assert [words[3] for words in made] == ["cue64"] * 2
    for words, correlation in zip(made, CORRELATIONS.values(), strict=True):
        assert words[-2:] == ["--correlation", str(correlation)]
    folders = [words[4] for words in made]
    trained = sorted(words[2:] for words in children.launched if words[1] == "train")
    assert len(trained) == 2
    for words in trained:
        values: dict[str, Any] = dict(word.split("=", 1) for word in words if word.startswith("data."))
        assert values["data.suites"] == folders[0]
        assert values["data.val"] == f"{folders[0]}/val"
        assert str(Path(values["data.train"]).parent) in folders
    assert len({next(w for w in words if w.startswith("data.train")) for words in trained}) == 2
    report = children.launched[-1]
    assert report[1:4] == ["report", str(CUES / "cnn_shape"), str(CUES / "cnn_texture")]
    suites = {e.name for e in load_recipe(ROOT / "recipes/cue64/base.yaml").evals if isinstance(e, SuiteEval)}
    assert suites == {"clean", *(folder for folder in FOLDERS if folder.startswith("cue64-"))}


def test_what_is_trained_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "is_finished", lambda *_: True)
    children = Recorded()
    run_phases(children, TASKS["cue64"])  # type: ignore[arg-type]
    assert not [words for words in children.launched if words[1] == "train"]
    assert sum("reusing" in text for text in children.said) == 2


def test_an_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--task", "cifar"])
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err
