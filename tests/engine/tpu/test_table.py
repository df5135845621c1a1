"""Facts as text: a block, a table, and rows that are not there yet."""

from pathlib import Path

import pytest

from engine.tpu.table import FOOT, HEADER, Pending, cells, markdown, plain_block, show
from tests.engine.tpu.made_answers import facts_of

PENDING = Pending("vit_adv", "v4:2x2x1", 64)


def test_a_block_says_all_that_is_known(tmp_path: Path) -> None:
    facts = facts_of(tmp_path)
    first, *rest = plain_block(facts)
    assert first == "small_cnn on v5e:2x4: 8 devices, 64 images each, float32"
    said = {line[:18].strip(): line[18:] for line in rest}
    assert said["verdict"] == "compiles and fits"
    assert said["HBM"] == "4.00 of 16 GiB a device (25%)"
    assert said["suggested batch"] == "256 images a device (estimate)"
    assert "of the model's own" in said["flops"]
    assert said["the model's"].startswith("2 forward of 0.0")
    assert said["bytes"].startswith("8.0 GB of operands and results a step")
    assert "estimate: data sheets, nothing ran" in said["time"]
    assert said["products"].startswith("f32 x f32, default precision 100.0%")
    assert said["gradients"] == "reduced over devices in f32"
    assert said["host fallbacks"] == "none"
    assert said["donated"] == "30 of 30 tensors of the state"
    assert said["compiling"] == "43 s (68 s of CPU), exporting 12 s, 2.0 GiB of this machine"


def test_more_flops_than_the_model_has_are_pointed_at() -> None:
    (line,) = [each for each in plain_block(facts_of(flops=1e12)) if each.startswith("flops")]
    assert "more than 1.02: look at the products below" in line
    honest = facts_of(flops=float(facts_of().model_flops))
    assert not any("more than" in each for each in plain_block(honest))


def test_a_step_that_does_not_compile_has_a_block_too() -> None:
    facts = facts_of(
        ok=False, error="UNIMPLEMENTED: no such sort", op="sort.3", fallbacks={"aten::nonzero": 2}
    )
    text = plain_block(facts)
    assert "verdict           does not compile: UNIMPLEMENTED: no such sort; the op: sort.3" in text
    assert "host fallbacks    aten::nonzero 2" in text
    assert not any(line.startswith(("time", "bytes", "HBM")) for line in text)


def test_a_partial_table_is_valid(tmp_path: Path) -> None:
    facts = [facts_of(tmp_path), PENDING, facts_of(ok=False, error="no", op="sort.3")]
    text = markdown(facts)
    assert {line.count("|") for line in text if line} == {len(HEADER) + 1, 0}
    assert "| vit_adv | v4:2x2x1 | 64 | not done yet | - |" in text[3]
    assert "does not compile (sort.3)" in text[4]
    assert text[-1] == FOOT
    assert all("|" not in cell for row in facts for cell in cells(row))


def test_a_reason_cannot_break_the_table() -> None:
    row = Pending("a", "v4:2x2x1", 64, "the step | cannot\nbe exported")
    assert cells(row)[3] == "the step / cannot be exported"


@pytest.mark.parametrize("number", [1, 2])
def test_without_a_terminal_it_is_plain_text(capsys: pytest.CaptureFixture[str], number: int) -> None:
    show([facts_of(), PENDING][:number])
    out = capsys.readouterr().out
    assert out.startswith("small_cnn on v5e" if number == 1 else "| recipe |")
    assert "\x1b" not in out


def test_on_a_terminal_it_is_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    show([facts_of()])
    show([facts_of(), PENDING])
    out = capsys.readouterr().out
    assert "compiles and fits" in out
    assert "not done yet" in out
