"""Figures of a step put together from those of its graphs."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.tpu.answer import assemble, first_line, needed, operation
from engine.tpu.job import Order
from engine.tpu.topology import find_topology

OOM = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.\n"
    "Used 35.80G of 15.75G hbm. Exceeded hbm capacity by 20.05G.\n\nTotal hbm usage >= 36.30G:\n"
)


def graph(**changes: Any) -> dict[str, Any]:
    memory = {"argument": 10, "output": 8, "alias": 6, "temp": 20, "code": 2, "peak": 31}
    figures = {"flops": 100.0, "bytes": 50.0, "compile_s": 3.0, "compile_cpu_s": 2.0, "host_peak_bytes": 7}
    return {"ok": True, "error": None, "memory": memory, "versions": {"jax": "1"}} | figures | changes


def answer(folder: Path, graphs: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    made = []
    for number, (count, found) in enumerate(graphs):
        (folder / f"graph-{number}.json").write_text(json.dumps(found))
        (folder / f"graph-{number}.stablehlo").write_bytes(b"12345")
        made.append(
            {"file": f"graph-{number}.stablehlo", "count": count, "donated": [[0, 1]], "state_tensors": 2}
        )
    exported = {"graphs": made, "precision": "bf16", "accumulate": 4, "teacher": None, "fallbacks": {}}
    exported |= {"export_s": 1.5, "versions": {"torch": "2"}}
    order = Order(
        recipe=Path("r.yaml"),
        words=[],
        topology=find_topology("v5e:2x4"),
        batch_per_device=64,
        timeout_s=1.0,
    )
    return assemble(order, exported, folder)


def test_one_graph(tmp_path: Path) -> None:
    found = answer(tmp_path, [(1, graph())])
    assert found["ok"]
    assert found["error"] is None
    assert found["op"] is None
    assert (found["topology"], found["chip"], found["num_devices"]) == ("v5e:2x4", "v5e", 8)
    assert (found["flops"], found["bytes"], found["compile_s"]) == (100.0, 50.0, 3.0)
    assert (found["donated"], found["state_tensors"], found["stablehlo_bytes"]) == (1, 2, 5)
    assert found["versions"] == {"torch": "2", "jax": "1"}
    assert found["hlo"] == str(tmp_path / "graph-0.txt")
    assert needed(found["memory"]) == 34


def test_several_graphs_add_up_and_memory_is_of_the_largest(tmp_path: Path) -> None:
    small, large = graph(), graph(flops=1000.0, memory={**graph()["memory"], "temp": 400})
    found = answer(tmp_path, [(3, small), (1, large)])
    assert found["flops"] == 3 * 100.0 + 1000.0
    assert found["memory"]["temp"] == 400
    assert found["hlo"].endswith("graph-1.txt")
    assert [each["count"] for each in found["graphs"]] == [3, 1]


def test_a_step_that_does_not_compile_is_an_answer(tmp_path: Path) -> None:
    found = answer(
        tmp_path, [(1, {"ok": False, "error": "UNIMPLEMENTED: no HLO: custom-call.7 on TPU\n\nmore"})]
    )
    assert not found["ok"]
    assert "flops" not in found
    assert (found["error"], found["op"]) == ("UNIMPLEMENTED: no HLO: custom-call.7 on TPU", "custom-call.7")


@pytest.mark.parametrize(
    ("error", "op"),
    [
        ("INTERNAL: While lowering %fusion.12 = f32[8] fusion(", "fusion.12"),
        ("UNIMPLEMENTED: op 'stablehlo.rng' is not known", "stablehlo.rng"),
        ("INTERNAL: something", None),
        (OOM, None),
    ],
)
def test_the_operation_that_an_error_names(error: str, op: str | None) -> None:
    assert operation(error) == op


def test_the_first_line_says_how_much_memory_lacks() -> None:
    line = first_line(OOM)
    assert line.startswith("RESOURCE_EXHAUSTED")
    assert line.endswith("Used 35.80G of 15.75G hbm")
    assert first_line("\n\n") == "no word"
