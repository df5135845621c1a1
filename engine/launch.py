"""What both launchers check before anything heavy is imported, and how they read their own flags."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Literal, NoReturn

from bits.processes import follow_launcher, is_worker, run_processes

__all__ = [
    "check_libtpu",
    "check_packages",
    "check_torch_xla",
    "chosen_backend",
    "follow_launcher",
    "hush",
    "is_worker",
    "launcher_flags",
    "leave",
    "prepare_tpu",
    "run_copies",
]

PACKAGES = ("bits", "data", "models", "robust", "engine")
Flag = bool | int | str


def check_packages(root: Path) -> None:
    """The five packages must be those beside the launcher: `data` and `models` are common names.

    ValueError naming the path that shadows one.
    """
    for name in PACKAGES:
        spec = util.find_spec(name)
        found = (
            [] if spec is None else [Path(p) for p in spec.submodule_search_locations or [spec.origin or "?"]]
        )
        if (root / name).resolve() not in [path.resolve() for path in found[:1]]:
            where = f"found at {found[0]}, not beside" if found else "not found beside"
            raise ValueError(
                f"package {name} was {where} the launcher in {root}; remove that path from PYTHONPATH, "
                "or start the launcher of a whole checkout"
            )


def check_torch_xla() -> None:
    """torch and torch_xla must be of one release: the pair shares compiled symbols."""
    versions = {}
    for name in ("torch", "torch_xla"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(f"{name} is not installed; run `pip install -e .[xla]`") from None
    torch, torch_xla = (value.split("+")[0].split(".")[:2] for value in versions.values())
    if torch != torch_xla:
        raise ValueError(
            f"torch {versions['torch']} and torch_xla {versions['torch_xla']} do not fit together; install "
            "both of the same release, e.g. `pip install -e .[xla]`"
        )


def check_libtpu() -> None:
    """PJRT_DEVICE=TPU needs the TPU's runtime, which torch_xla brings as an extra only."""
    if os.environ.get("PJRT_DEVICE") != "TPU" or os.environ.get("TPU_LIBRARY_PATH"):
        return
    if util.find_spec("libtpu") is None:
        raise ValueError(
            "PJRT_DEVICE=TPU: libtpu is not installed; on a TPU VM run `pip install 'torch_xla[tpu]==2.9.*'`, "
            "elsewhere use PJRT_DEVICE=CPU"
        )


def launcher_flags(argv: Sequence[str], known: Mapping[str, Flag]) -> tuple[dict[str, Flag], list[str]]:
    """The launcher's own flags, which stand before the verb, and the rest. Numbers must be at least 1, texts not
    empty."""
    flags, rest = dict(known), list(argv)
    while rest and rest[0].partition("=")[0] in known:
        name, has_value, value = rest.pop(0).partition("=")
        if isinstance(known[name], bool):
            if has_value:
                raise ValueError(
                    f"{name} {value}: this flag takes no value; write {name} alone, or leave it out"
                )
            flags[name] = True
            continue
        if not has_value:
            value = rest.pop(0) if rest else ""
        if isinstance(known[name], str):
            if not value:
                raise ValueError(f"{name} without a value: write {name} and a path before the verb")
            flags[name] = value
            continue
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name} {value or 'without a value'}: give a whole number, 1 or more")
        flags[name] = int(value)
    return flags, rest


def chosen_backend(*, on_cpu: bool) -> Literal["cpu", "auto", "tpu"]:
    """Of launch_gpu.py. EXPERIMENTAL: ROBUST_BITS_TPU=1 in the environment takes the native TPU device."""
    return "cpu" if on_cpu else "tpu" if os.environ.get("ROBUST_BITS_TPU") == "1" else "auto"


def prepare_tpu(num_processes: int) -> None:
    """What the processes of a native TPU run must agree on, before they start; nothing for other backends."""
    if chosen_backend(on_cpu=False) == "tpu":
        import_module("bits.tpu").prepare_launch(num_processes)


def run_copies(script: Sequence[str], num_processes: int) -> int:
    """Runs the Python script with its arguments once per rank; the first failing rank's exit code, or 0."""
    return run_processes([sys.executable, *script], num_processes)


def leave(code: int) -> NoReturn:
    """Ends this process with `code`.

    One of several processes ends without taking its objects apart: DDP's reducer, freed while Python shuts down,
    may join a gloo thread that waits for the interpreter's lock (seen with torch 2.9), for ever. By now all that
    a run keeps is written and closed.
    """
    if not is_worker():
        sys.exit(code)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def hush() -> None:
    """No warning of a library may bury the one line that a user needs."""
    # torch's C++ warnings go past Python's filters; read when torch is loaded, which is after this.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.getLogger("torch_xla").setLevel(logging.ERROR)
