"""Every kind of objective makes the same updates on cpu x1, cpu x2 and xla x2, there with a fixed set of graphs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bits.processes import free_port

WORKER = Path(__file__).with_name("objectives_worker.py")
KINDS = ("targeted", "trades", "mart", "advprop", "free")


def updates(
    folder: Path, environment: Any, backend: str, *, world: int = 1, devices: int = 1
) -> dict[str, dict[str, Any]]:
    out = folder / f"{backend}-{world}.pt"
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CPU_NUM_DEVICES": str(devices)}
    shared["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # the same graphs, compiled without care
    children = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
        command = [sys.executable, str(WORKER), backend, str(world), str(devices), str(out)]
        children.append(
            subprocess.Popen(command, env=environment(**shared, **ranks), stderr=subprocess.PIPE, text=True)
        )
    errors = [child.communicate(timeout=500)[1] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(errors)[-3000:]
    results: dict[str, dict[str, Any]] = torch.load(out, weights_only=True)
    assert tuple(results) == KINDS
    return results


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, process_environment: Any
) -> dict[str, dict[str, Any]]:
    return updates(tmp_path_factory.mktemp("objectives"), process_environment, "cpu")


@pytest.mark.parametrize(
    ("backend", "world", "devices"), [("cpu", 2, 1), ("xla", 1, 2)], ids=["cpu-x2", "xla-x2"]
)
def test_the_updates_of_every_kind_are_the_reference(
    backend: str,
    world: int,
    devices: int,
    reference: dict[str, dict[str, Any]],
    tmp_path: Path,
    process_environment: Any,
) -> None:
    results = updates(tmp_path, process_environment, backend, world=world, devices=devices)
    for kind, found in results.items():
        wanted = reference[kind]
        moved = (wanted["weights"][1:] - wanted["weights"][:-1]).norm(dim=1)
        assert moved.min() > 1e-3, f"{kind}: an update changed nothing"
        distance = (found["weights"] - wanted["weights"]).norm(dim=1)
        assert distance.max() < 1e-3 * moved.min(), f"{kind}: {distance.tolist()}"
        for name, value in wanted["means"].items():
            assert found["means"][name] == pytest.approx(value, abs=1e-4), f"{kind}: {name}"
        assert found["fallbacks"] == 0, kind
        _, second, third = found["compiles"]
        assert third == second, f"{kind}: a graph was made after the second update"
