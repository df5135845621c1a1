"""Weight files: what is inside one, read without running anything it holds, and the toolkit's own export.

Everything is loaded with `weights_only=True` or by safetensors. What cannot be read that way, is cut off, or is no
weight file at all (a login page saved as .pth, a Git LFS pointer) is a WeightFileError in one line.
"""

import hashlib
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = "1"  # of the export's metadata
FORMAT_KEY = "robust_bits_format"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 begins with this number
NESTED = ("model", "state_dict", "model_state_dict")  # under which published files keep the state dict
STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
PIXEL_BUFFERS = ("mean", "std")  # of models.pixel.PixelModel
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


class WeightFileError(ValueError):
    """A file that cannot be used as weights: the path, what it is, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file that was read."""

    path: Path
    container: str  # "safetensors", "torch zip" or "torch legacy"
    layout: str  # where the state dict was: "state dict", "checkpoint of this toolkit", "{'model': ...}", ...
    state: Mapping[str, Tensor]  # the state dict
    contents: Mapping[
        str, int
    ]  # tensors under each key of the outermost mapping, the state dict's own included
    content: Mapping[str, Any]  # the outermost mapping as it was
    metadata: Mapping[str, str]  # of safetensors, else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Numbers about a state dict."""

    num_tensors: int
    num_parameters: int  # floating-point values without BatchNorm's statistics and PixelModel's mean and std
    num_values: int
    dtypes: Mapping[str, int]  # "float32": tensors of it
    first: tuple[str, ...]
    last: tuple[str, ...]
    num_nonfinite: int  # values that are nan or infinite


def describe_state(state: Mapping[str, Tensor], *, shown: int = 3) -> Facts:
    """Counts over a state dict; `shown` names from its start and its end. Reads every value once."""
    names = list(state)
    dtypes: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    trained = [t.numel() for name, t in state.items() if t.is_floating_point() and not _is_statistic(name)]
    return Facts(
        num_tensors=len(names),
        num_parameters=sum(trained),
        num_values=sum(tensor.numel() for tensor in state.values()),
        dtypes=dtypes,
        first=tuple(names[:shown]),
        last=tuple(names[max(shown, len(names) - shown) :]),
        num_nonfinite=sum(_nonfinite(tensor) for tensor in state.values()),
    )


def _is_statistic(name: str) -> bool:
    return name in PIXEL_BUFFERS or STATISTICS.search(name) is not None


def _nonfinite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    # 8-bit floats know no isfinite.
    wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    return int((~torch.isfinite(wide)).sum())


def file_sha256(path: Path) -> str:
    """Of the file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- reading


def read_weights(path: Path) -> WeightFile:
    """The file at `path`, on the cpu. WeightFileError for what is no weight file, OSError for what cannot be opened."""
    if path.is_dir():
        raise WeightFileError(f"{path} is a folder; give a weight file, e.g. a checkpoint in a run folder")
    if not path.exists():
        raise WeightFileError(f"{path} does not exist; check the path")
    with path.open("rb") as file:
        head = file.read(512)
    container = recognise(path, head)
    if container == "safetensors":
        return _read_safetensors(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise WeightFileError(
            f"{path} holds {_noun(content)}, not a mapping of names to tensors; save a state dict"
        )
    layout, state = _find_state(path, content)
    return WeightFile(
        path=path,
        container=container,
        layout=layout,
        state=state,
        contents={} if state is content else _count_tensors(content),
        content=content,
        metadata={},
    )


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


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i:unsupported global:? )(?:GLOBAL )?([\w.]+)", str(error))
        if found is None and "Can only" not in str(error):
            raise WeightFileError(f"{path} is damaged or not torch's format; fetch it again") from None
        named = "" if found is None else f" ({found[1]})"
        raise WeightFileError(
            f"{path} holds Python objects{named}, which can run code when loaded; nothing was loaded; "
            "ask for a plain state dict or safetensors"
        ) from None
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception:  # cut off or altered, a file can make the reader fail anywhere
        raise WeightFileError(f"{path} is truncated or damaged; fetch it again") from None


def _find_state(path: Path, content: Mapping[Any, Any]) -> tuple[str, Mapping[str, Tensor]]:
    if _is_state(content):
        return "state dict", content
    if {"model", "optimizer", "step"} <= content.keys() and _is_state(content["model"]):
        return "checkpoint of this toolkit" if "consumed" in content else "{'model': ...}", content["model"]
    for key in NESTED:
        if _is_state(content.get(key)):
            return f"{{'{key}': ...}}", content[key]
    # some files keep a few plain numbers between the tensors
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        return "state dict with other values", tensors
    keys = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
    raise WeightFileError(
        f"{path} holds no state dict (found: {keys}); known are {', '.join(NESTED)} or names of tensors"
    )


def _is_state(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _count_tensors(content: Mapping[Any, Any]) -> dict[str, int]:
    counts = {str(key): sum(1 for _ in _tensors(value)) for key, value in content.items()}
    return {key: count for key, count in counts.items() if count}


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _noun(value: object) -> str:
    return "one tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # Copies: the tensors are views of the mapped file, and a file cut short later would end the process.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, no mapping
    except Exception as error:  # SafetensorError, and what a damaged header leads to
        raise WeightFileError(
            f"{path} is truncated or damaged ({' '.join(str(error).split())}); fetch it again"
        ) from None
    return WeightFile(
        path=path,
        container="safetensors",
        layout="export of this toolkit" if FORMAT_KEY in metadata else "state dict",
        state=state,
        contents={},
        content=state,
        metadata=metadata,
    )


# ---- the toolkit's export


def to_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of an export: `state` as it is, `metadata` with the format's version added. Equal for equal input."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors.torch.save(tensors, {"format": "pt", FORMAT_KEY: FORMAT, **metadata})
    # The library writes the header in an order that changes from run to run; its length says where tensors begin.
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.dumps(
        json.loads(data[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[end:]


def read_exported(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata of a file that to_safetensors made. WeightFileError for any other file."""
    found = read_weights(path)
    if found.container != "safetensors" or FORMAT_KEY not in found.metadata:
        raise WeightFileError(
            f"{path} was not written by `weights export` ({found.container}, {found.layout}): it does not say "
            "which model it belongs to; give a run folder, or export one"
        )
    if found.metadata[FORMAT_KEY] != FORMAT:
        raise WeightFileError(
            f"{path} is an export of format {found.metadata[FORMAT_KEY]}, this version reads {FORMAT}; "
            "use a newer toolkit"
        )
    return dict(found.state), dict(found.metadata)


def json_value(metadata: Mapping[str, str], key: str, path: Path) -> Any:
    """A metadata value that is JSON; WeightFileError where it is missing or not JSON."""
    try:
        return json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        raise WeightFileError(f"{path}: its metadata has no usable {key!r}; export it again") from None
