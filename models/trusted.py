"""Reads one pickle that may run code, in a process of its own: `python -m models.trusted SRC DST`.

DST is what torch.save writes of the tensors, plain values and containers in SRC, with modules as their state dicts, so
that it can be read with `weights_only=True`. Everything else in SRC is dropped. A process of its own keeps what SRC
does to the interpreter away from the caller; it is no sandbox: code in SRC runs with the rights of the user.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from models.weight_container import WeightFileError

_ROOT: Final = Path(__file__).parents[1]
_FAILED: Final = 3  # exit code; the reason is the last line of stderr


def rewrite_trusted(source: Path, target: Path) -> None:
    """Makes `target` as said above. WeightFileError in one line where `source` cannot be read even so."""
    command = [sys.executable, "-m", "models.trusted", str(source.absolute()), str(target.absolute())]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not target.is_file():
        lines = done.stderr.strip().splitlines() or [f"the process ended with code {done.returncode}"]
        raise WeightFileError(
            f"{source} cannot be unpickled here ({lines[-1][:200]}); install what it was made with, or ask for a plain "
            "state dict"
        )


def plain(value: object) -> object:
    """`value` without anything that weights_only refuses; None in place of what is dropped."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        return plain(value.state_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    # The exact types: a subclass may be anything.
    return value if type(value) in (str, int, float, bool) else None


def main() -> None:
    """The process that rewrite_trusted starts."""
    source, target = sys.argv[1:]
    try:
        content = torch.load(source, map_location="cpu", weights_only=False)
        torch.save(plain(content), target)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_FAILED)


if __name__ == "__main__":
    main()
