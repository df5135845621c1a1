"""How far the shards tool is: rare lines in a file, a bar on a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from engine import counter as module
from engine.counter import Counter

ROOT = Path(__file__).parents[2]


def test_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    counter = Counter("pack")
    for done in range(0, 251, 10):
        counter.advance(done, 250)
        now[0] += 1
    counter.say("a word")
    counter.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "pack: 100 of 250 images, 10 a second",
        "pack: 200 of 250 images, 10 a second",
        "a word",
    ]


def test_shards_that_were_there_do_not_count_as_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    counter = Counter("index")
    counter.advance(1000, 2000, "shards")
    now[0] = 20.0
    counter.advance(1100, 2000, "shards")
    assert capsys.readouterr().err == "index: 1100 of 2000 shards, 5 a second\n"


def test_a_bar_on_a_terminal() -> None:
    program = (
        "from engine.counter import Counter\nc = Counter('pack')\nc.advance(3, 4)\nc.say('word')\nc.close()\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("CI", None)
    words = [sys.executable, "-c", program]
    try:
        subprocess.run(words, stderr=follower, cwd=ROOT, env=environment, check=True)
        shown = os.read(leader, 100_000).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "pack" in shown
    assert "3/4" in shown
    assert "word" in shown
