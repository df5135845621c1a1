"""What only several processes of the cpu backend show."""

import os
import subprocess
import sys
from pathlib import Path

from bits.processes import free_port

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import torch
from torch import nn
from bits.accelerated import open_environment

env = open_environment("cpu", precision="float32", num_devices=1, deterministic=False)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(40, 300), nn.GELU(), nn.Linear(300, 7), nn.GELU(), nn.Linear(7, 50))
forward = env.wrap(env.place(model))
x = torch.randn(5, 40, generator=torch.Generator().manual_seed(env.rank))
found = []
for _ in range(3):
    env.backward(forward(x).square().mean())
    found.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
env.close()
for later in found[1:]:
    assert all(torch.equal(a, b) for a, b in zip(found[0], later)), "another order of summation"
"""


REDUCED = """
import sys
sys.path.insert(0, {root!r})
import torch
from torch import nn
from bits.accelerated import open_environment

for name in ("float32", "bf16"):
    env = open_environment(
        "cpu", precision="float32", num_devices=1, deterministic=False, reduce_dtype=name
    )
    model = nn.Linear(1, 1, bias=False)
    forward = env.wrap(env.place(model))
    # 1 + 2**-10 has no bf16; what a process makes for itself is float32 with either.
    env.backward(forward(torch.full((1, 1), 1 + 2**-10)).sum())
    wanted = 1.0 if name == "bf16" else 1 + 2**-10
    assert model.weight.grad.dtype == torch.float32
    assert model.weight.grad.item() == wanted, (name, model.weight.grad.item())
env.close()
"""


def run_ranks(program: str, tmp_path: Path, num_processes: int) -> None:
    """Runs `program` in every process of a world of the cpu backend."""
    script = tmp_path / "program.py"
    script.write_text(program.format(root=str(Path(__file__).parents[2])))
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0] * num_processes, "\n".join(errors)[-2000:]


def test_first_update_of_three_ranks_sums_as_later_ones(tmp_path: Path) -> None:
    """DDP lays out its buckets anew after the first backward; a resumed run would differ from one never stopped."""
    run_ranks(PROGRAM, tmp_path, 3)


def test_gradients_are_summed_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    run_ranks(REDUCED, tmp_path, 2)
