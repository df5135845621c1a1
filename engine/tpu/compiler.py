"""Compiles exported programs for a TPU topology, with jax and libtpu and no TPU. A program of its own environment.

    python compiler.py '{"folder": ..., "topology": "v5e:2x4", "config": "default"}'

Imports nothing of this toolkit. For each graph of FOLDER/export.json it writes FOLDER/graph-K.json with figures per
device, and FOLDER/graph-K.txt with the optimized HLO; a graph that has its JSON is left as it is.

The route is jax's public one: a portable StableHLO artifact takes the place of the program inside an `Exported` that
`jax.export.export` has made of a function with the same arguments and results, and is called from a `jax.jit` which
adds what StableHLO of torch_xla lacks: shardings and donation. Results that take an argument's memory come first and
in the order of those arguments, because jit pairs donated arguments and results of equal shape in order. Partitioning
is GSPMD's, as in torch_xla.
"""

# mypy: ignore-errors
# jax is not there when this toolkit's types are checked.

import dataclasses
import json
import os
import re
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # or jax looks for a TPU
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # and libtpu asks the network which one it is
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from jax import export
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TENSOR = re.compile(r"tensor<((?:\d+x)*)([a-z]+\d*)>")
DIVIDED = re.compile(r"\{devices=\[(\d+)((?:,1)*)\]")
AXIS = "data"
KINDS = {"i": "int", "ui": "uint", "f": "float"}
DTYPES = {f"{short}{bits}": f"{long}{bits}" for short, long in KINDS.items() for bits in (8, 16, 32, 64)}
DTYPES |= {"i1": "bool", "bf16": "bfloat16"}


def main(order: dict) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_use_shardy_partitioner", False)
    folder = Path(order["folder"])
    config = {} if order["config"] == "default" else {"chip_config_name": order["config"]}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=order["topology"], **config)
    mesh = Mesh(np.array(topology.devices), (AXIS,))
    for number, graph in enumerate(json.loads((folder / "export.json").read_text())["graphs"]):
        path = folder / f"graph-{number}.json"
        if not path.exists():
            facts = compile_graph(folder, number, graph, mesh)
            path.with_suffix(".tmp").write_text(json.dumps(facts))
            path.with_suffix(".tmp").rename(path)


def compile_graph(folder: Path, number: int, graph: dict, mesh: Mesh) -> dict:
    """Figures per device, or what the compiler has against it."""
    artifact = (folder / graph["file"]).read_bytes()
    lowered = lower(artifact, graph, mesh)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return {"ok": False, "error": str(error)}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    (folder / f"graph-{number}.txt").write_text(compiled.as_text())
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "ok": True,
        "error": None,
        "memory": {
            "argument": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "alias": memory.alias_size_in_bytes,
            "temp": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "peak": getattr(memory, "peak_memory_in_bytes", None),
        },
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "compile_s": wall,
        "compile_cpu_s": cpu,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
    }


def lower(artifact: bytes, graph: dict, mesh: Mesh) -> jax.stages.Lowered:
    """With shardings and donation."""
    arguments, results = signature(artifact)
    whole, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    shardings = [
        divided if splits or number in graph["divided"] else whole
        for number, (_, splits) in enumerate(arguments)
    ]
    pairs = sorted(tuple(pair) for pair in graph["donated"])
    for argument, result in pairs:
        assert same(arguments[argument][0], results[result]), (argument, result)
    kept = [result for _, result in pairs]
    others = [number for number in range(len(results)) if number not in set(kept)]
    program = exported(artifact, [argument for argument, _ in arguments], results)

    def step(*values):
        found = program.call(*values)
        return [found[number] for number in kept], [found[number] for number in others]

    donated = tuple(argument for argument, _ in pairs)
    jitted = jax.jit(
        step,
        in_shardings=shardings,
        out_shardings=([shardings[argument] for argument in donated], None),
        donate_argnums=donated,
        keep_unused=True,
    )
    return jitted.trace(*[argument for argument, _ in arguments]).lower(lowering_platforms=("tpu",))


def exported(artifact: bytes, arguments: list, results: list) -> export.Exported:
    """`artifact` as a function of jax. The one made here says how it is called, the artifact what it does."""

    def stand_in(*_):
        return [jax.numpy.zeros(result.shape, result.dtype) for result in results]

    made = export.export(jax.jit(stand_in, keep_unused=True), platforms=["tpu"])(*arguments)
    return dataclasses.replace(made, mlir_module_serialized=artifact)


def signature(artifact: bytes) -> tuple[list, list]:
    """[(argument, whether axis 0 is divided)] and [result] of the artifact's `main`."""
    shell = export.export(jax.jit(lambda: 0), platforms=["tpu"])()
    text = dataclasses.replace(shell, mlir_module_serialized=artifact).mlir_module()
    head = re.search(r"func\.func (?:public )?@main\((.*?)\) -> (.*) \{\n", text)
    assert head is not None, text[:300]
    arguments = re.split(r", (?=%arg\d+: )", head[1])
    found = [(shape(text), is_divided(text)) for text in arguments]
    return found, [shape(each[0]) for each in TENSOR.finditer(head[2])]


def shape(text: str) -> jax.ShapeDtypeStruct:
    dims, dtype = TENSOR.search(text).groups()
    return jax.ShapeDtypeStruct(tuple(int(n) for n in dims.split("x") if n), DTYPES[dtype])


def is_divided(text: str) -> bool:
    found = DIVIDED.search(text)
    assert found or "devices=[" not in text, text
    return found is not None and found[1] != "1"


def same(one: jax.ShapeDtypeStruct, other: jax.ShapeDtypeStruct) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
