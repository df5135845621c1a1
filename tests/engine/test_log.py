"""log.jsonl: whole lines, also after a writer was killed in the middle of one."""

import json
from pathlib import Path

import pytest

from engine.log import RunLog, read_log


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
