"""The compiler's answer to one order: figures of each graph put together, all of them per device."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.tpu.job import Order

# "... %fusion.3 = ...", "HLO: custom-call.7", "op: 'stablehlo.rng'": compilers name an operation in many ways.
OPERATION = re.compile(
    r"(?:%(?P<hlo>[a-z][\w-]*(?:\.\d+)?) = |(?:HLO|instruction|op(?:eration)?):? '?(?P<op>[a-z][\w.-]*[\w]))"
)
LACKS_MEMORY = re.compile(r"Used [\d.]+[KMG] of [\d.]+[KMG] hbm")


def assemble(order: "Order", exported: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One mapping: `ok`, `error` and `op`, the figures of a step, and where its programs lie.

    `flops`, `bytes` and seconds are sums over the graphs of a step, memory is that of the graph that needs most. A
    step is one micro-batch of `batch_per_device` images, the one that ends an update.
    """
    graphs = [_graph(folder, number, made) for number, made in enumerate(exported["graphs"])]
    refused = next((graph for graph in graphs if not graph["ok"]), None)
    answer: dict[str, Any] = {
        "ok": refused is None,
        "error": None if refused is None else first_line(refused["error"]),
        "op": None if refused is None else operation(refused["error"]),
        "topology": order.topology.name,
        "num_devices": order.topology.num_devices,
        "chip": order.topology.chip,
        "batch_per_device": order.batch_per_device,
        **{name: exported[name] for name in ("precision", "accumulate", "teacher", "fallbacks", "export_s")},
        "stablehlo_bytes": sum((folder / made["file"]).stat().st_size for made in exported["graphs"]),
        "donated": sum(len(made["donated"]) for made in exported["graphs"]),
        "state_tensors": sum(made["state_tensors"] for made in exported["graphs"]),
        "versions": exported["versions"] | graphs[0].get("versions", {}),
        "graphs": graphs,
    }
    return answer | (_figures(graphs) if refused is None else {})


def _graph(folder: Path, number: int, made: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"graph-{number}.json").read_text())
    return found | {"count": made["count"], "hlo": str(folder / f"graph-{number}.txt")}


def _figures(graphs: list[dict[str, Any]]) -> dict[str, Any]:
    largest = max(graphs, key=lambda graph: needed(graph["memory"]))
    return {
        "memory": largest["memory"],
        "hlo": largest["hlo"],
        "flops": sum(graph["flops"] * graph["count"] for graph in graphs),
        "bytes": sum(graph["bytes"] * graph["count"] for graph in graphs),
        "compile_s": sum(graph["compile_s"] for graph in graphs),
        "compile_cpu_s": sum(graph["compile_cpu_s"] for graph in graphs),
        "host_peak_bytes": max(graph["host_peak_bytes"] for graph in graphs),
    }


def needed(memory: Mapping[str, int]) -> int:
    """Bytes of HBM of a program: what it is given, makes and keeps aside, and itself."""
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"] + memory["code"]


def first_line(error: str) -> str:
    """What the compiler said first, and how much memory was missing if that was it."""
    line = next((line.strip() for line in error.splitlines() if line.strip()), "no word")[:400]
    found = LACKS_MEMORY.search(error)
    return line if found is None or found[0] in line else f"{line} {found[0]}"


def operation(error: str) -> str | None:
    """The operation that an error names; None where it names none, or memory is what lacks."""
    if LACKS_MEMORY.search(error):
        return None
    found = OPERATION.search(error)
    return None if found is None else found["hlo"] or found["op"]
