"""Entry for XLA: `launch_xla.py [--num-devices N] [--num-hosts N] [--compile-cache DIR] VERB ...` (see README.md).

On a TPU VM it takes the chips that are there, on a pod one process on each host does so for its own; with
PJRT_DEVICE=CPU it runs anywhere, on N virtual devices.
"""

import os
import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write(f"error: Python {found} is not supported; use Python 3.11, 3.12 or 3.13\n")
    sys.exit(2)

from pathlib import Path

from engine.cli import Launch
from engine.cli import main as run_verb
from engine.compile_cache import use_compile_cache
from engine.failure import guarded
from engine.launch import check_libtpu, check_packages, check_torch_xla, hush, launcher_flags

PROGRAM = "launch_xla.py"


def main(argv: list[str]) -> int:
    """The exit code of the verb: 0 done, 2 user error, 3 data limit exceeded, 75 stopped with state saved."""
    hush()
    return guarded(lambda: launch(argv))


def launch(argv: list[str]) -> int:
    """Runs the verb on the devices asked for."""
    check_packages(Path(__file__).parent)
    flags, rest = launcher_flags(argv, {"--num-devices": 1, "--num-hosts": 1, "--compile-cache": ""})
    check_torch_xla()
    check_libtpu()
    num_devices = int(flags["--num-devices"])
    if os.environ.get("PJRT_DEVICE") == "CPU":
        # Read once, when the runtime starts, which is after this line. A number that is set already is the machine's,
        # as chips are: another one asked for is refused.
        os.environ.setdefault("CPU_NUM_DEVICES", str(num_devices))
    note = use_compile_cache(str(flags["--compile-cache"])) if flags["--compile-cache"] else None
    if note:
        sys.stderr.write(f"{note}\n")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the runtime's deprecation notes, one per compile
    wanted = Launch(backend="xla", world_size=int(flags["--num-hosts"]), num_devices=num_devices)
    return run_verb(rest, wanted, program=PROGRAM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
