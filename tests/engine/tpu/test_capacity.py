"""How many images should fit: lines through compiled batches, and sizes that a recipe can be trained with."""

from pathlib import Path
from typing import Any

import pytest

from engine.recipe import load_recipe
from engine.tpu.capacity import Point, batch_unit, point_of, suggest_batch
from engine.tpu.chips import CHIPS, GIB

RECIPES = Path(__file__).parents[3] / "recipes"
V5E = CHIPS["v5e"]


def test_one_compiled_batch_promises_too_little_rather_than_too_much() -> None:
    point = Point(64, GIB // 2, 3 * GIB)
    found = suggest_batch([point], V5E, unit=2)
    assert found == 256  # 0.5 + 12 of 14.75 GiB; 384 would be 18.5
    # Of the 3 GiB, 1 does not grow: two batches show it, and more fits.
    assert suggest_batch([point, Point(128, GIB // 2, 5 * GIB)], V5E, unit=2) == 384


@pytest.mark.parametrize(
    ("unit", "expected"), [(1, 256), (2, 256), (3, 288), (5, 240), (8, 256), (48, 288), (100, 300)]
)
def test_the_batch_is_a_multiple_of_what_the_recipe_needs(unit: int, expected: int) -> None:
    assert suggest_batch([Point(64, 0, 3 * GIB)], V5E, unit=unit) == expected


def test_nothing_fits() -> None:
    assert suggest_batch([Point(2, 20 * GIB, GIB)], V5E, unit=2) is None


def test_memory_that_does_not_grow() -> None:
    assert suggest_batch([Point(32, GIB, GIB), Point(64, GIB, GIB)], V5E, unit=1) == 16384


def test_points_of_answers() -> None:
    memory = {"argument": 100, "output": 90, "alias": 80, "temp": 1000, "code": 7, "peak": None}
    answer: dict[str, Any] = {"ok": True, "batch_per_device": 64, "memory": memory}
    assert point_of(answer) == Point(64, 117, 1000)
    lacking = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 26.50G of 15.75G hbm."
    answer = {"ok": False, "batch_per_device": 512, "error": lacking}
    assert point_of(answer) == Point(512, 0, int(26.5 * GIB))
    assert point_of(answer | {"error": "UNIMPLEMENTED: an op"}) is None
    assert point_of(answer | {"error": None}) is None


@pytest.mark.parametrize(
    ("recipe", "words", "unit"),
    [
        ("bai2021/adv_deit_small", [], 2),  # mixes pairs
        ("bai2021/adv_res50_gelu", [], 2),  # groups:2x8
        ("quickstart/cnn_adv", [], 32),
        ("quickstart/cnn_adv", ["model.norm_stats=local"], 1),
        ("quickstart/cnn_adv", ["model.norm_stats=groups:3", "objective.mixup=0.8"], 6),
    ],
)
def test_units_of_recipes(recipe: str, words: list[str], unit: int) -> None:
    assert batch_unit(load_recipe(RECIPES / f"{recipe}.yaml", words)) == unit
