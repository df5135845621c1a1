"""The two containers of weights, torch's and safetensors', told by their first bytes and read without running anything.

Pickles are read with `weights_only=True`, always. `harmless` also lets in a few classes that hold values and do
nothing (argparse.Namespace, paths, numpy's scalars): files of research code keep their settings in these.
"""

import argparse
import collections
import contextlib
import pathlib
import pickle
import re
import struct
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

FORMAT_KEY = "robust_bits_format"  # metadata of what `weights export` writes
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


Allowed = Callable[..., Any] | tuple[Callable[..., Any], str]  # and the name it goes by in pickles


class WeightFileError(ValueError):
    """A file that cannot be used as weights: the path, what it is, what to do."""


class HeldObjectsError(WeightFileError):
    """A pickle with more in it than tensors and plain values."""


def recognise(path: Path, head: bytes) -> str:
    """The container, by its first bytes and never by its name. WeightFileError for what holds no weights."""
    for is_it, what in _STRANGERS:
        if is_it(head):
            raise WeightFileError(f"{path} is {what}")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "torch zip"
    if head.startswith(LEGACY_MAGIC):
        return "torch legacy"
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER:
        return "safetensors"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        raise WeightFileError(
            f"{path} is a plain pickle, which can run code when loaded, and not torch's format; "
            "nothing was loaded; ask for safetensors"
        )
    raise WeightFileError(f"{path} is not a weight file (torch or safetensors); check what was downloaded")


def _is_page(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


_STRANGERS = (
    (lambda head: not head, "empty (0 bytes); fetch it again"),
    (_is_page, "an HTML page, not weights: a login or error page was saved; fetch the file itself"),
    (
        lambda head: head.startswith(b"version https://git-lfs"),
        "a Git LFS pointer, not the file it stands for; fetch it with `git lfs pull`",
    ),
    (lambda head: head.startswith(b"\x1f\x8b"), "gzip-compressed; unpack it first"),
)


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the latter two for altered bytes
        raise WeightFileError(f"{path} is truncated or damaged (no whole zip file); fetch it again") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightFileError(
            f"{path} is a TorchScript program, which holds code; save its state dict instead"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightFileError(f"{path} is a zip file that torch did not write; unpack it first")


def unpickle(path: Path, *, harmless: bool = False) -> object:
    """What torch.save wrote, on the cpu. WeightFileError for a damaged file or one that holds other objects."""
    allowed = _HARMLESS if harmless else []
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i:unsupported global:? )(?:GLOBAL )?([\w.]+)", str(error))
        if found is None and not re.search(r"Can only|Trying to", str(error)):
            raise WeightFileError(f"{path} is damaged or not torch's format; fetch it again") from None
        names = [] if found is None else [found[1]]
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # cut off or altered, a file can make the reader fail anywhere
        raise WeightFileError(f"{path} is truncated or damaged; fetch it again") from None
    raise HeldObjectsError(_refusal(path, _unknown_globals(path, allowed) or names))


def _refusal(path: Path, names: list[str]) -> str:
    known = {entry[1] for entry in _HARMLESS if isinstance(entry, tuple)}
    flag = "" if names and known.issuperset(names) else " --trust-pickle"
    warning = ", if you trust who made it" if flag else ""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (
        f"{path} holds Python objects{f' ({shown})' if names else ''}, which can run code when loaded; nothing was "
        f"loaded; keep its tensors with `weights convert {path.name} DST.safetensors{flag}`{warning}"
    )


def _unknown_globals(path: Path, allowed: list[Allowed]) -> list[str]:
    """All names that the pickle asks for and may not have; empty for torch's old container, whose reader stops at
    the first."""
    with contextlib.suppress(Exception), torch.serialization.safe_globals(allowed):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return []


def _harmless() -> list[Allowed]:
    """Stand-ins under the names that pickles use; none of them does anything when it is made."""
    scalar: Any = np.float64(0).__reduce__()[0]  # numpy moved the module it lives in
    classes: list[Allowed] = [
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (collections.defaultdict, "collections.defaultdict"),
        *((kind, f"{module}.{kind.__name__}") for kind in (list, int, float, dict) for module in _BUILTINS),
        *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in _PATHS),
        *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in _PATHS),
        (np.dtype, "numpy.dtype"),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]
    numbers = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "bool")]
    return classes + [(kind, f"numpy.dtypes.{kind.__name__}") for kind in numbers]


_BUILTINS = ("builtins", "__builtin__")
_PATHS = ("pathlib", "pathlib._local")
_HARMLESS = _harmless()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # Copies: the tensors are views of the mapped file, and a file cut short later would end the process.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, metadata  # noqa: SIM118, no mapping
    except Exception as error:  # SafetensorError, and what a damaged header leads to
        raise WeightFileError(
            f"{path} is truncated or damaged ({' '.join(str(error).split())}); fetch it again"
        ) from None
