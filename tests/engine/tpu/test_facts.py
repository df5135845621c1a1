"""The compiler's answer read: each verdict, and what a step is made of."""

from pathlib import Path

import pytest

from engine.passes import passes_of
from engine.recipe import load_recipe
from engine.tpu.chips import GIB
from engine.tpu.facts import read
from tests.engine.tpu.made_answers import RECIPE, RECIPES, answer_of, facts_of


def test_a_step_that_fits(tmp_path: Path) -> None:
    found = facts_of(tmp_path)
    assert (found.verdict, found.reason) == ("fits", None)
    assert found.memory is not None
    assert found.memory.total == 4 * GIB
    assert found.suggested_batch == 256
    assert found.flops_ratio == pytest.approx(2e9 / (64 * found.step_flops.total))
    assert found.matrix_ratio == pytest.approx(2 * 2 * 100 * 100 * 128 / (64 * found.step_flops.inside))
    assert found.collectives == "all-reduce of 2 f32 arrays, 0.1 MB, all-reduce of 2 bf16 arrays, 0.0 MB"
    assert found.gradient_dtype == "f32"
    assert found.padding is not None
    assert 0 < found.padding < 0.2
    assert found.roofline is not None
    assert found.roofline.most_bytes_s == pytest.approx(8 / 819)
    assert found.notes == ()


def test_a_program_whose_text_is_gone() -> None:
    found = facts_of(hlo="/nowhere/graph-0.txt")
    assert found.verdict == "fits"
    assert (found.counts, found.collectives, found.padding, found.matrix_ratio) == (None, None, None, None)
    assert found.roofline is not None
    assert "text is not there" in found.notes[0]


def test_a_step_that_lacks_memory() -> None:
    line = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.50G of 15.75G hbm."
    found = facts_of(ok=False, error=line, memory=None, flops=None, bytes=None, compile_s=None)
    assert (found.verdict, found.reason) == ("does not fit", line)
    assert found.suggested_batch == 32
    assert (found.flops, found.flops_ratio, found.roofline) == (None, None, None)
    assert found.model_flops > 0


def test_a_compiled_step_that_is_larger_than_the_chip() -> None:
    memory = {"argument": GIB, "output": 0, "alias": 0, "temp": 16 * GIB, "code": 0, "peak": None}
    found = facts_of(memory=memory)
    assert found.verdict == "does not fit"
    assert found.reason == "needs more than the 16 GiB of a device"


def test_an_op_that_does_not_compile() -> None:
    found = facts_of(ok=False, error="UNIMPLEMENTED: no such sort", op="sort.3")
    assert (found.verdict, found.op, found.memory, found.suggested_batch) == (
        "does not compile",
        "sort.3",
        None,
        None,
    )


def test_what_has_to_be_said_is_noted() -> None:
    found = facts_of(topology="v3:2x2", chip="v3", donated=28, accumulate=4)
    assert [note.split(":")[0] for note in found.notes[:1]] == ["v3"]
    assert "last of 4 micro-batches" in found.notes[1]
    assert "held twice" in found.notes[2]


def test_gradients_summed_otherwise_than_asked_are_noted(tmp_path: Path) -> None:
    answer = answer_of(tmp_path, precision="bf16")
    words = ["run.precision=bf16", "run.reduce_dtype=bf16"]
    recipe = load_recipe(RECIPES / "quickstart" / "cnn_adv.yaml", words)
    found = read(answer, recipe=recipe, passes=passes_of(recipe.objective))
    assert found.notes == ("run.reduce_dtype is bf16, but most bytes are summed in f32",)


def test_other_batches_of_the_same_step_help() -> None:
    larger = answer_of(batch_per_device=128)
    larger["memory"] = larger["memory"] | {"temp": 4 * GIB}
    one = answer_of()
    found = read(one, recipe=RECIPE, passes=passes_of(RECIPE.objective), others=[larger])
    assert found.suggested_batch == 512  # 3 GiB and 1 for each 64
