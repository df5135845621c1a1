"""log.jsonl: whole lines, also after a writer was killed in the middle of one; and what TRAIN.md says of them."""

import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from data.bad import BadSample
from data.index import load_index
from engine import free, health_monitor, loop, verb_train
from engine.adversarial_objectives import Mart, Trades, WithClean
from engine.attack_pace import Count
from engine.bad_images import BadImages
from engine.cli import Launch, parse
from engine.distillation import Distilled
from engine.health import Watch
from engine.log import RunLog, read_log
from engine.stop import Stopped

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {  # with a warm-up of everything, so that every field of a report is written
    "data": {"image_size": 16, "num_workers": 0, "randaug": "rand-m9-mstd0.5-inc1"},
    "model": {"name": "small_cnn"},
    "optim": {"lr": 1e-3},
    "objective": {
        "kind": "adversarial",
        "mixup": 0.8,
        "attack": {"norm": "linf", "eps": "8/255", "step_size": "8/255", "steps": 1},
        "warmup": {
            "magnitude": [[0, 1]],
            "mix_prob": [[0, 0.5]],
            "cutmix": [[0, 1.0]],
            "switch_prob": [[0, 0.5]],
            "eps": [[0, "4/255"]],
            "steps": [[0, 1]],
        },
    },
    "evals": [{"suite": "clean", "num_images": 8}],
    "run": {"epochs": 1, "batch_size": 16, "report_every": 1, "tensorboard": False, "gallery_images": 0},
}


def test_lines_come_back_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    for part in range(2):
        log = RunLog(path)
        assert log.is_open
        for step in range(3):
            log.write("train", step=step, part=part, text="ü\u2028\n")
    entries = read_log(path)
    assert [(e["event"], e["part"], e["step"]) for e in entries] == [
        ("train", part, step) for part in range(2) for step in range(3)
    ]
    assert all(entry["text"] == "ü\u2028\n" and entry["time"] > 0 for entry in entries)
    assert len(path.read_text().splitlines()) == 6
    log.say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    """At whatever byte the writer was killed, what came before and what comes after is read."""
    path = tmp_path / "log.jsonl"
    RunLog(path).write("train", step=1)
    first = path.read_bytes()
    for cut in range(len(first) + 1):
        path.write_bytes(first + first[:cut])
        RunLog(path).write("train", step=2)
        assert [e["step"] for e in read_log(path)] == [1, 2] if cut < len(first) - 1 else [1, 1, 2], cut


def test_a_line_is_one_write(tmp_path: Path) -> None:
    """Two writers at once (they should not be) still leave whole lines."""
    path = tmp_path / "log.jsonl"
    logs = [RunLog(path), RunLog(path)]
    for step in range(4):
        logs[step % 2].write("train", step=step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None)
    log.write("train", step=1)
    log.say("hello")
    assert not log.is_open
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# ---- TRAIN.md against what is written


def documented(start: str, end: str) -> dict[str, str]:
    """First column (every name in it) to the last, of the table of TRAIN.md between two texts."""
    table = (ROOT / "TRAIN.md").read_text().partition(start)[2].partition(end)[0]
    rows = [line.strip("| \n").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {name: row[-1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}


@pytest.fixture(scope="module")
def entries(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of runs that began, went on, stopped, failed and ended."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["train", str(folder / "r.yaml"), f"data.train={few_digits}", f"data.val={few_digits}"]
    for output, max_steps in (("run", 1), ("run", 2)):
        arguments = parse([*words, f"run.max_steps={max_steps}", "--output", str(folder / output)], "p")
        assert verb_train.run(arguments, Launch(backend="cpu"))["exit_code"] == 0
    with pytest.MonkeyPatch.context() as patch:
        judged: list[Watch] = []

        def check(watch: Watch, **values: Any) -> tuple[Watch, str | None]:
            judged.append(watch)
            return (Watch(low=1), "planted") if len(judged) == 2 else (Watch(), None)

        def make_step(*, warn: Any, **values: Any) -> Any:
            warn("planted")  # as the step guard does on XLA
            return free.make_step(warn=warn, **values)

        patch.setattr(health_monitor, "check", check)
        patch.setattr(loop, "make_step", make_step)
        health = "run.health={every: 1, images: 2, steps: 1, rollback: true}"
        arguments = parse(
            [*words, health, "run.max_steps=3", "run.checkpoint_every=1", "--output", str(folder / "back")],
            "p",
        )
        assert verb_train.run(arguments, Launch(backend="cpu"))["exit_code"] == 0
    with pytest.MonkeyPatch.context() as patch:
        for name, error in (("stop", Stopped()), ("error", ValueError("two\nlines"))):
            patch.setattr(verb_train.Loop, "run", raising(error))
            arguments = parse([*words, "--output", str(folder / name)], "p")
            with contextlib.suppress(ValueError):
                verb_train.run(arguments, Launch(backend="cpu"))
    bad = BadImages(load_index(few_digits), max_share=0.5)
    bad.note([BadSample("torn", shard="train-000000.tar", key="7/1", position=3)])
    environment: Any = SimpleNamespace(world_size=1, agree=lambda value: value)
    bad.report(environment, RunLog(folder / "error/log.jsonl"), 1)
    pace = Count(total=2, components=("clean", "apgd-ce"))
    RunLog(folder / "error/log.jsonl").write("attack", name="aa_linf8", **pace.values())
    back = [
        e
        for e in read_log(folder / "back/log.jsonl")
        if e["event"] in ("health", "alarm", "rollback", "changed")
    ]
    return back + [
        entry for name in ("run", "stop", "error") for entry in read_log(folder / name / "log.jsonl")
    ]


def raising(error: Exception) -> Any:
    def run(self: Any) -> None:
        raise error

    return run


def fields(entries: list[dict[str, Any]], event: str) -> set[str]:
    (names,) = {frozenset(entry) for entry in entries if entry["event"] == event}
    return set(names) - {"event", "time"}


def test_every_event_is_documented_and_every_documented_one_written(entries: list[dict[str, Any]]) -> None:
    table = documented("| event | fields |", "| field of `train`")
    assert set(table) == {entry["event"] for entry in entries}
    for event in set(table) - {"train", "eval"}:
        # A remark in brackets may name other things.
        named = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", table[event])))
        assert fields(entries, event) == named, event
    assert all(entry["time"] > 1e9 for entry in entries)


def test_every_field_of_a_report_is_documented(entries: list[dict[str, Any]]) -> None:
    of_objectives = {name for kind in (WithClean, Trades, Mart, Distilled) for name in kind.meters}
    found = fields(entries, "train") | of_objectives
    assert set(documented("| field of `train`", "**On the terminal.**")) == found


def test_an_evaluation_has_the_fields_of_its_result_and_its_step(entries: list[dict[str, Any]]) -> None:
    judged = [entry for entry in entries if entry["event"] == "eval"]
    assert [(entry["name"], entry["step"]) for entry in judged] == [("clean", 1), ("clean", 2)]
    assert {"top1", "interval", "num_images", "weights_sha256", "evaluation"} <= fields(entries, "eval")


def test_starts_ends_and_errors_say_what_happened(entries: list[dict[str, Any]]) -> None:
    starts = [entry for entry in entries if entry["event"] == "start"]
    assert [(entry["resumed"], entry["step"]) for entry in starts] == [
        (False, 0),
        (True, 1),
        (False, 0),
        (False, 0),
    ]
    assert starts[0]["source"] is None
    assert starts[1]["source"].endswith("checkpoints")
    assert [entry["step"] for entry in entries if entry["event"] == "end"] == [1, 2]
    assert [entry["error"] for entry in entries if entry["event"] == "error"] == ["two lines"]
