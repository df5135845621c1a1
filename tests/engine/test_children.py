"""Ctrl-C during the quickstart: every child is asked once, saves, and is waited for; a second one ends them."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.children import ROOT, Children
from engine.folder import RunFolder
from engine.quickstart import describe_compiles, is_finished, last_training
from engine.recipe import load_recipe

CHILD = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("working", flush=True)
while not asked or {deaf}:
    time.sleep(0.01)
time.sleep(0.2)
print(f"saved after {{len(asked)}}", flush=True)
sys.exit(75)
"""
PARENT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from engine.children import Children, Interrupted
with Children() as children:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(children.run, name, [sys.executable, "-c", {child!r}]) for name in ("one", "two", "three")]
    for job in jobs:
        try:
            job.result()
        except Interrupted:
            print("interrupted")
"""


def start(deaf: bool, environment: dict[str, str]) -> "subprocess.Popen[str]":
    program = PARENT.format(child=CHILD.format(deaf=deaf))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def read_until(process: "subprocess.Popen[str]", text: str, times: int) -> None:
    assert process.stdout is not None
    while times:
        line = process.stdout.readline()
        assert line, "the process ended early"
        times -= text in line


def test_all_children_save_and_none_is_started_after(
    process_environment: Callable[..., dict[str, str]],
) -> None:
    process = start(False, process_environment())
    read_until(process, "working", 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out.count("saved after 1") == 2
    assert "three" not in out
    assert out.count("interrupted") == 3


def test_a_second_one_does_not_wait(process_environment: Callable[..., dict[str, str]]) -> None:
    process = start(True, process_environment())
    read_until(process, "working", 2)
    process.send_signal(signal.SIGINT)
    read_until(process, "stopping", 1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert "saved" not in out
    assert out.count("interrupted") == 3


def test_a_failure_names_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    with Children() as children, pytest.raises(subprocess.CalledProcessError) as caught:
        children.run("child", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    assert caught.value.returncode == 3
    assert "child | why" in capfd.readouterr().out


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Children():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_child_leads_a_group_of_its_own() -> None:
    with Children() as children:
        children.run("child", [sys.executable, "-c", "import os; assert os.getpgrp() == os.getpid()"])


def test_only_the_same_recipe_trained_to_its_end_is_reused(tmp_path: Path) -> None:
    path = ROOT / "recipes/quickstart/cnn_adv.yaml"
    recipe, folder = load_recipe(path), RunFolder(tmp_path)
    assert not is_finished(folder, recipe)
    folder.recipe.write_text(recipe.resolved_yaml())
    assert not is_finished(folder, recipe)
    folder.write_exit(75)
    assert not is_finished(folder, recipe)
    folder.write_exit(0)
    assert is_finished(folder, recipe)
    assert not is_finished(folder, load_recipe(path, ["run.seed=1"]))
    assert not is_finished(folder, load_recipe(path, ["evals=[]"]))


def test_compiles_after_the_second_update_are_counted_apart() -> None:
    time_free = {"compile_ms": 5000, "fallbacks": 0, "step_s": 0.05}
    entries = [{"step": 1, "compiles": 3, **time_free}, {"step": 2, "compiles": 5, **time_free}]
    line = describe_compiles([*entries, {"step": 9, "compiles": 6, **time_free}])
    assert "6 graphs compiled in 5.0 s, 1 of them after" in line
    assert "50 ms a step" in line


def test_an_interrupted_run_is_described_by_the_process_that_ended_it() -> None:
    """Each process counts its own compilations: across a resumption the difference means nothing."""

    def train(step: int, compiles: int) -> dict[str, Any]:
        return {"event": "train", "step": step, "compiles": compiles, **time_free}

    time_free = {"compile_ms": 5000, "fallbacks": 0, "step_s": 0.05}
    log: list[dict[str, Any]] = [{"event": "start", "step": 0}, train(1, 3), train(12, 9), {"event": "stop"}]
    log += [{"event": "start", "step": 20}, train(21, 5), train(32, 7), train(44, 7), {"event": "stop"}]
    log += [{"event": "start", "step": 44}, {"event": "end"}]  # only evaluated
    begun, reports = last_training(log)
    line = describe_compiles(reports, begun=begun)
    assert "7 graphs compiled in 5.0 s, 0 of them after" in line
    assert "1 graphs compiled" in describe_compiles([train(44, 1)], begun=43)  # a single update was left


def test_the_quickstart_starts_without_torch() -> None:
    """torch takes seconds to import, in which a Ctrl-C would end in a traceback."""
    program = "import sys, engine.quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
