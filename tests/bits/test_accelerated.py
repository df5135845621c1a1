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


def test_first_update_of_three_ranks_sums_as_later_ones(tmp_path: Path) -> None:
    """DDP lays out its buckets anew after the first backward; a resumed run would differ from one never stopped."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(root=str(Path(__file__).parents[2])))
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], "\n".join(errors)[-2000:]
