"""Two processes that speak through gloo, as the hosts of a pod would."""

import os
import subprocess
import sys
from pathlib import Path

from bits.hosts import Hosts
from bits.processes import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from bits.hosts import Hosts

rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
hosts = Hosts(rank=rank, world_size=2, meet=f"tcp://127.0.0.1:{port}")
again = Hosts(rank=rank, world_size=2, meet=f"tcp://127.0.0.1:{port}")  # a second environment of the process
assert hosts.agree(10 + rank) == 11 and again.agree(-(2**40) - rank) == -(2**40)
if rank == 1:
    (folder / "written").touch()
hosts.barrier()
assert (folder / "written").exists(), "the barrier let a process pass"
hosts.close()
hosts.close()
print(f"done {rank}")
"""


def test_two_processes_agree_and_wait(tmp_path: Path) -> None:
    port = str(free_port())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), port, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, child in enumerate(children):
        out, error = child.communicate(timeout=120)
        assert out == f"done {rank}\n", f"{out}\n{error[-2000:]}"  # and no greeting of gloo's before it


def test_alone_there_is_nobody_to_wait_for() -> None:
    hosts = Hosts(rank=0, world_size=1, meet="nowhere://")
    assert hosts.agree(7) == 7
    hosts.barrier()
    hosts.close()
