"""The toolkit's own export: a safetensors file whose metadata says which model it is."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from models.weight_container import FORMAT_KEY, WeightFileError
from models.weights import read_weights

FORMAT = "1"  # of the export's metadata


def to_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of an export: `state` as it is, `metadata` with the format's version added. Equal for equal input."""
    return safe_bytes(state, {FORMAT_KEY: FORMAT, **metadata})


def safe_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file that does not claim to be an export. Equal for equal input; shared memory is written twice."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors.torch.save(tensors, {"format": "pt", **metadata})
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
