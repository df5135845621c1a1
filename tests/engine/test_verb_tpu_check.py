"""`tpu-check` from its words to its table, with a compiler that only pretends."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine import verb_tpu_check
from engine.cli import Launch, main, parse
from engine.tpu.job import Order

ALONE = Launch(backend="cpu")
PLAIN = "recipes/quickstart/cnn_clean.yaml"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders that reached the compiler."""
    orders: list[Order] = []

    def pretend(order: Order, **_: Any) -> dict[str, Any]:
        orders.append(order)
        if "optim.lr=0.125" in order.words:
            raise ValueError("the step needs the host: aten::nonzero 3x")
        memory = {
            "argument": 1 << 20,
            "output": 1 << 20,
            "alias": 1 << 20,
            "temp": 1 << 20,
            "code": 1,
            "peak": 1,
        }
        return {
            "ok": True,
            "error": None,
            "op": None,
            "topology": order.topology.name,
            "num_devices": order.topology.num_devices,
            "chip": order.topology.chip,
            "batch_per_device": order.batch_per_device,
            "memory": memory,
            "flops": 1e9,
            "bytes": 1e9,
            "compile_s": 1.0,
            "compile_cpu_s": 1.0,
            "host_peak_bytes": 1 << 30,
            "hlo": "nowhere.txt",
            "stablehlo_bytes": 1,
            "export_s": 1.0,
            "donated": 3,
            "state_tensors": 3,
            "fallbacks": {},
            "precision": "float32",
            "accumulate": 1,
            "teacher": None,
            "versions": {},
        }

    monkeypatch.setattr(verb_tpu_check, "compile_step", pretend)
    return orders


def check(*words: str | Path) -> dict[str, Any]:
    return verb_tpu_check.run(parse(["tpu-check", *map(str, words)], "launch_xla.py"), ALONE)


def test_one_recipe(compiled: list[Order], capsys: pytest.CaptureFixture[str]) -> None:
    result = check(PLAIN, "optim.lr=1e-3", "--topology", "v5e:2x2", "--batch-per-device", "32")
    assert result["exit_code"] == 0
    assert [row["recipe"] for row in result["rows"]] == [PLAIN]
    (order,) = compiled
    assert order.words == ["optim.lr=1e-3", "run.batch_size=128"]
    assert (order.batch_per_device, order.topology.num_devices) == (32, 4)
    assert "v5e:2x2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((PLAIN, "--topology", "v5e:3x5"), "unknown TPU topology 'v5e:3x5'; there are v3:2x2"),
        (("--topology", "v5e:2x2"), "needs a recipe; or say --all"),
        (("no.yaml",), "no.yaml does not exist"),
        ((PLAIN, "--batch-per-device", "0"), "above 0"),
        ((PLAIN, "--timeout", "0"), "above 0"),
        ((PLAIN, "optim.lr=0.125"), "needs the host: aten::nonzero 3x"),
        (("tests", "--all"), "no recipes in tests"),
    ],
)
def test_bad_input_is_one_line(
    compiled: list[Order], capfd: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert main(["tpu-check", *words], ALONE, program="launch_xla.py") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error


def test_all_goes_on_where_it_was(compiled: list[Order], tmp_path: Path) -> None:
    folder, words = tmp_path / "out", ("--output", tmp_path / "out", "--topology", "v5e:2x2")
    check("recipes/quickstart", "--all", *words)
    assert len(compiled) == 4  # what only serves as a base is none
    assert len(list(folder.glob("*.json"))) == 4
    stale = next(folder.glob("cnn_clean.*.json"))
    stale.write_text(stale.read_text()[:100])  # of a disk that was full
    next(folder.glob("vit_adv.*.json")).unlink()
    check("recipes/quickstart", "--all", *words)
    assert [order.recipe.name for order in compiled[4:]] == ["cnn_clean.yaml", "vit_adv.yaml"]
    check(PLAIN, "optim.lr=1e-3", *words)
    check(PLAIN, "optim.lr=1e-3", *words)
    assert len(compiled) == 7


def test_the_table_is_valid_before_all_is_done(
    compiled: list[Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verb_tpu_check.compile_step

    def stop_at_the_third(order: Order) -> dict[str, Any]:
        if len(compiled) == 2:
            raise KeyboardInterrupt
        return real(order)

    monkeypatch.setattr(verb_tpu_check, "compile_step", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        check("recipes/quickstart", "--all", "--output", tmp_path, "--topology", "v5e:2x2")
    table = (tmp_path / "table.md").read_text()
    assert table.count("not done yet") == 2
    assert table.count("| fits |") == 2


def test_a_row_that_cannot_be_made_does_not_end_the_others(compiled: list[Order], tmp_path: Path) -> None:
    words = ("--all", "--output", tmp_path, "--topology", "v5e:2x2", "optim.lr=0.125")
    result = check("recipes/quickstart", *words)
    assert result["exit_code"] == 2
    assert [row["ok"] for row in result["rows"]] == [False] * 4
    assert "aten::nonzero 3x" in (tmp_path / "table.md").read_text()
    assert list(tmp_path.glob("*.json")) == []  # to be tried again


def test_json_has_the_rows(compiled: list[Order], tmp_path: Path) -> None:
    words = ["tpu-check", PLAIN, "--topology", "v5e:1x1", "--json", str(tmp_path / "x.json")]
    assert main(words, ALONE, program="launch_xla.py") == 0
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert (row["name"], row["num_devices"], row["flops"]) == ("cnn_clean", 1, 1e9)
