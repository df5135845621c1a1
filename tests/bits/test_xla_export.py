"""A step recorded where it would have run: nothing is executed, and what it changes in place is known."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("xla_export_worker.py")
CASES = ("update", "attacked", "attacked", "of_the_batch_alone", "accumulated")
Environment = Callable[..., dict[str, str]]


def run(*words: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", str(WORKER), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def traced(process_environment: Environment) -> list[dict[str, Any]]:
    """What came of CASES on two devices."""
    done = run("2", *CASES, environment=process_environment())
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_update_is_one_graph_that_changes_its_state_in_place(traced: list[dict[str, Any]]) -> None:
    found = traced[0]
    # weight, momentum, counts, and `last`, whose old value nobody needs; a portable artifact begins with ML
    assert found["graphs"] == [[3, 0, 4, "ML"]]
    assert len({argument for argument, _ in found["pairs"][0]}) == 3
    assert {result for _, result in found["pairs"][0]} < {0, 1, 2, 3}
    assert found["fallbacks"] == {}


def test_nothing_is_executed(traced: list[dict[str, Any]]) -> None:
    assert [found["executes"] for found in traced[:3]] == [0, 0, 0]


def test_what_one_graph_leaves_to_the_next_stays_divided(traced: list[dict[str, Any]]) -> None:
    *steps, last = traced[1]["graphs"]
    assert [each[2] for each in steps] == [0, 0, 0]  # an attack changes nothing that was there before
    assert [each[1] for each in steps] == [0, 1, 1]  # the first one's image was fed
    assert last[:3] == [3, 1, 4]


def test_a_gradient_kept_for_the_next_micro_step_is_whole_however_long_it_is(
    traced: list[dict[str, Any]],
) -> None:
    assert [each[1] for each in traced[4]["graphs"]] == [0, 0]


def test_equal_steps_are_equal_programs(traced: list[dict[str, Any]]) -> None:
    first, again = traced[1], traced[2]
    assert len(first["graphs"]) == 4
    # Of three steps the first has an image that was fed, and its StableHLO says how that is divided.
    assert first["distinct"] == 3
    assert first["programs"] == again["programs"]


def test_what_is_left_to_the_host_without_a_crash_is_counted(traced: list[dict[str, Any]]) -> None:
    assert traced[3]["fallbacks"] == {"aten::nonzero": 1}


@pytest.mark.parametrize("case", ["needs_the_host", pytest.param("needs_a_read", marks=pytest.mark.slow)])
def test_a_value_that_is_needed_ends_the_process_at_its_line(
    case: str, process_environment: Environment
) -> None:
    done = run("1", case, environment=process_environment())
    assert done.returncode < 0
    assert f"in {case}" in done.stderr
