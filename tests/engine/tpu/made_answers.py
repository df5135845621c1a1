"""Answers of the TPU compiler, made up, and their facts."""

from pathlib import Path
from typing import Any

from engine.passes import passes_of
from engine.recipe import load_recipe
from engine.tpu.chips import GIB
from engine.tpu.facts import Facts, read

RECIPES = Path(__file__).parents[3] / "recipes"
RECIPE = load_recipe(RECIPES / "quickstart" / "cnn_adv.yaml")
PROGRAM = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (a: f32[100,128]) -> f32[100,128] {
  %a = f32[100,128]{1,0:T(8,128)} parameter(0)
  %s = bf16[3]{0:T(256)} convert(%a)
  %t = bf16[3]{0:T(256)} all-reduce(%s), channel_id=2, to_apply=%add
  %d = f32[100,100]{1,0:T(8,128)} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %r = f32[100,128]{1,0:T(8,128)} all-reduce(%a), channel_id=1, to_apply=%add
}
"""


def answer_of(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A compiler's answer, as engine/tpu/answer.py makes them."""
    answer: dict[str, Any] = {
        "ok": True,
        "error": None,
        "op": None,
        "topology": "v5e:2x4",
        "num_devices": 8,
        "chip": "v5e",
        "batch_per_device": 64,
        "memory": {
            "argument": GIB,
            "output": GIB,
            "alias": GIB,
            "temp": 3 * GIB,
            "code": 0,
            "peak": None,
        },
        "flops": 2e9,
        "bytes": 8e9,
        "compile_s": 43.4,
        "compile_cpu_s": 68.0,
        "host_peak_bytes": 2 * GIB,
        "export_s": 12.0,
        "donated": 30,
        "state_tensors": 30,
        "fallbacks": {},
        "precision": "float32",
        "accumulate": 1,
        "num_classes": 10,
        "versions": {},
    }
    if folder is not None:
        (folder / "graph-0.txt").write_text(PROGRAM)
        answer["graphs"] = [{"hlo": str(folder / "graph-0.txt"), "count": 2}]
    return answer | changes


def facts_of(folder: Path | None = None, **changes: Any) -> Facts:
    return read(answer_of(folder, **changes), recipe=RECIPE, passes=passes_of(RECIPE.objective))
