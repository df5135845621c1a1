"""Entry for CPU and CUDA: `python launch_gpu.py [--cpu] [--num-processes N] VERB ...` (see README.md).

Works under `accelerate launch` and torchrun as well, which start the processes themselves.
"""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write(f"error: Python {found} is not supported; use Python 3.11, 3.12 or 3.13\n")
    sys.exit(2)

from pathlib import Path

from engine.cli import ALONE, Launch, validate
from engine.cli import main as run_verb
from engine.failure import guarded
from engine.launch import (
    check_packages,
    chosen_backend,
    follow_launcher,
    hush,
    is_worker,
    launcher_flags,
    leave,
    prepare_tpu,
    run_copies,
)

PROGRAM = "launch_gpu.py"


def main(argv: list[str]) -> int:
    """The exit code of the verb: 0 done, 2 user error, 3 data limit exceeded, 75 stopped with state saved."""
    hush()
    return guarded(lambda: launch(argv))


def launch(argv: list[str]) -> int:
    """Starts the processes asked for, or runs the verb in this one."""
    check_packages(Path(__file__).parent)
    flags, rest = launcher_flags(argv, {"--cpu": False, "--num-processes": 1})
    num_processes = int(flags["--num-processes"])
    if num_processes > 1 and not is_worker():
        # Here, so that a mistake in the recipe is one line before any process starts.
        verb = validate(rest, PROGRAM)
        if verb in ALONE:
            raise ValueError(f"--num-processes {num_processes}: {verb} runs in one process; drop the flag")
        if not flags["--cpu"]:
            prepare_tpu(num_processes)
        return run_copies([__file__, *argv], num_processes)
    follow_launcher()
    # Under an outside launcher the number of processes is that launcher's to say.
    world_size = None if is_worker() and num_processes == 1 else num_processes
    backend = chosen_backend(on_cpu=bool(flags["--cpu"]))
    return run_verb(rest, Launch(backend=backend, world_size=world_size), program=PROGRAM)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
