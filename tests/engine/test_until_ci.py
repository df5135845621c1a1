"""`--until-ci`: images in random order, whole blocks, an end when the confidence sequence is short enough."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine.autoattack import run_autoattack
from engine.blocks import in_random_order
from engine.eval_fields import AutoAttackEval
from engine.evaluate import Evaluator
from engine.ledger import read_ledger, wilson_interval
from engine.sampling import sequential_interval
from engine.stop import Stopped
from tests.engine.autoattack_cases import LANES, in_two, num_calls, replace_entry, rows_of

POINTS = 25.0
TOTAL = 120


@pytest.fixture
def until(entry: AutoAttackEval) -> AutoAttackEval:
    return replace_entry(entry, num_images=TOTAL, until_ci=POINTS)


def test_it_ends_with_the_first_interval_that_is_short_enough(
    evaluator: Evaluator, until: AutoAttackEval
) -> None:
    said: list[str] = []
    result = run_autoattack(replace(evaluator, say=said.append), until)
    num, right = result["num_images"], result["num_correct"]
    assert num % LANES == 0
    assert LANES < num < TOTAL
    order = in_random_order(evaluator.index, evaluator.keys(until))
    rows = list(read_ledger(evaluator.ledger).rows(result["evaluation"]))
    assert {row.position for row in rows} == set(order[:num].tolist()), "the first ones of the order"
    wrong = {row.position for row in rows if not row.correct}
    robust = np.array([key not in wrong for key in order[:num].tolist()])
    widths = [
        sequential_interval(int(robust[:n].sum()), n, TOTAL).half_width for n in range(LANES, num + 1, LANES)
    ]
    assert widths[-1] <= POINTS / 100 < min(widths[:-1])
    assert result["interval"] == list(sequential_interval(right, num, TOTAL))
    assert result["interval"] != list(wilson_interval(right, num))
    assert (result["num_total"], result["attack"]["until_ci"]) == (TOTAL, POINTS)
    assert "arXiv:2006.04347" in result["interval_kind"]
    assert any("whenever one looks" in line for line in said)
    before = num_calls(evaluator)
    assert run_autoattack(evaluator, until) == result
    assert num_calls(evaluator) == before


def test_interrupted_it_ends_at_the_same_image(
    evaluator: Evaluator, until: AutoAttackEval, tmp_path: Path
) -> None:
    whole, broken = run_autoattack(evaluator, until), replace(evaluator, ledger=tmp_path / "broken/ledger")
    stops, result = 0, None
    while result is None:
        left = iter([False] * 4)
        try:
            result = run_autoattack(replace(broken, stop_asked=partial(next, left, True)), until)
        except Stopped:
            stops += 1
    assert stops > 2, "it was interrupted"
    assert {**result, "notes": 0} == {**whole, "notes": 0}
    assert rows_of(broken, result) == rows_of(evaluator, whole)


def test_two_processes_end_together(evaluator: Evaluator, until: AutoAttackEval, tmp_path: Path) -> None:
    """They look after a round of a block each, so they may draw one block more."""
    alone = run_autoattack(evaluator, until)
    evaluator.model.eval()
    two = replace(evaluator, ledger=tmp_path / "two/ledger")
    first, second = in_two(two, until)
    assert first == second
    rounds = -(-alone["num_images"] // (2 * LANES))
    assert first["num_images"] == rounds * 2 * LANES
    there = rows_of(two, first)
    assert all(there[key] == row for key, row in rows_of(evaluator, alone).items())
    assert not [*two.ledger.glob("*.here"), *two.ledger.glob("*.round")]
    begun = num_calls(evaluator)
    again = run_autoattack(two, until)
    assert again == first, "what was begun by two is counted, also by one"
    assert num_calls(evaluator) == begun


def test_a_breadth_first_attack_says_a_bound_and_no_interval(
    evaluator: Evaluator, entry: AutoAttackEval
) -> None:
    said: list[str] = []
    entries: list[dict[str, object]] = []
    run_autoattack(replace(evaluator, say=said.append, record=lambda v: entries.append(dict(v))), entry)
    assert said
    assert all("robust accuracy at most" in line and "[" not in line for line in said)
    last = entries[-1]
    assert last["done"] == last["total"] == 24
    assert "apgd-ce" in last["components"]  # type: ignore[operator]
